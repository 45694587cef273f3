// amqp091-go: publish or consume; prints microseconds of CPU time and of time for each message.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const prefetch = 100

func check(err error) {
	if err != nil {
		log.Fatal("amqp091-go: ", err)
	}
}

func cpu() time.Duration {
	var used syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func publish(channel *amqp.Channel, queue string, mark string, body any, count int) {
	for number := 0; number < count; number++ {
		encoded, err := json.Marshal(body)
		check(err)
		check(channel.PublishWithContext(context.Background(), "", queue, false, false, amqp.Publishing{
			ContentType:     "application/json",
			ContentEncoding: "utf-8",
			DeliveryMode:    amqp.Persistent,
			Body:            encoded,
		}))
	}
	// The reply says that the broker has all that was sent before.
	_, err := channel.QueueDeclarePassive(mark, true, false, false, false, nil)
	check(err)
}

func consume(channel *amqp.Channel, queue string, count int) {
	check(channel.Qos(prefetch, 0, false))
	deliveries, err := channel.Consume(queue, "", false, false, false, false, nil)
	check(err)
	for number := 0; number < count; number++ {
		delivery, isOpen := <-deliveries
		if !isOpen {
			log.Fatal("amqp091-go: the broker closed the channel")
		}
		var body any
		check(json.Unmarshal(delivery.Body, &body))
		check(delivery.Ack(false))
	}
}

func main() {
	work, host, port, user, password, vhost := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6]
	queue, mark := os.Args[7], os.Args[8]
	count, err := strconv.Atoi(os.Args[9])
	check(err)
	var body any
	check(json.Unmarshal([]byte(os.Args[10]), &body))
	address := url.URL{Scheme: "amqp", User: url.UserPassword(user, password), Host: net.JoinHostPort(host, port)}
	connection, err := amqp.DialConfig(address.String(), amqp.Config{Vhost: vhost})
	check(err)
	channel, err := connection.Channel()
	check(err)
	used, began := cpu(), time.Now()
	if work == "publish" {
		publish(channel, queue, mark, body, count)
	} else {
		consume(channel, queue, count)
	}
	each := 1e3 * float64(count)
	fmt.Println(float64(cpu()-used)/each, float64(time.Since(began))/each)
	check(connection.Close())
}
