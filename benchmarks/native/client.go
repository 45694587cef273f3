// amqp091-go: publish or consume; prints microseconds of CPU time and of time for each message, and then
// the latencies of works that measure them, in seconds.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	amqp "github.com/rabbitmq/amqp091-go"
)

const prefetch = 100

// callers share the channel of the work that awaits confirms.
const callers = 100

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

func encode(body any) amqp.Publishing {
	encoded, err := json.Marshal(body)
	check(err)
	return amqp.Publishing{
		ContentType:     "application/json",
		ContentEncoding: "utf-8",
		DeliveryMode:    amqp.Persistent,
		Body:            encoded,
	}
}

func publish(channel *amqp.Channel, queue string, mark string, body any, count int) {
	for number := 0; number < count; number++ {
		check(channel.PublishWithContext(context.Background(), "", queue, false, false, encode(body)))
	}
	// The reply says that the broker has all that was sent before.
	_, err := channel.QueueDeclarePassive(mark, true, false, false, false, nil)
	check(err)
}

// come sends when each call is due at a rate, at that time; with 0, at once.  The thread sleeps: the timers of
// goroutines wait for whole milliseconds.
func come(count int, rate float64) <-chan time.Time {
	calls := make(chan time.Time, count)
	go func() {
		runtime.LockOSThread()
		defer close(calls)
		began := time.Now()
		for number := 0; number < count; number++ {
			due := began
			if rate > 0 {
				due = began.Add(time.Duration(float64(number) / rate * 1e9))
				if pause := time.Until(due); pause > 0 {
					wait := syscall.NsecToTimespec(pause.Nanoseconds())
					syscall.Nanosleep(&wait, nil)
				}
			}
			calls <- due
		}
	}()
	return calls
}

// confirmed publishes at a rate (0: as fast as possible); each caller waits for its confirm.
func confirmed(channel *amqp.Channel, queue string, body any, count int, rate float64) []float64 {
	check(channel.Confirm(false))
	took, answered := make([]float64, count), make([]chan bool, count)
	for tag := range answered {
		answered[tag] = make(chan bool, 1)
	}
	// Not with deferred confirms: version 1.5 misses one that comes before the publish has returned.
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, count))
	go func() {
		for confirm := range confirms {
			answered[confirm.DeliveryTag-1] <- confirm.Ack
		}
	}()
	calls := come(count, rate)
	var done int64 = -1
	var order sync.Mutex
	var all sync.WaitGroup
	published := 0
	for caller := 0; caller < callers; caller++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for due := range calls {
				message := encode(body)
				order.Lock()
				answer := answered[published]
				published++
				err := channel.PublishWithContext(context.Background(), "", queue, false, false, message)
				order.Unlock()
				check(err)
				if !<-answer {
					log.Fatal("amqp091-go: the broker refused a message")
				}
				took[atomic.AddInt64(&done, 1)] = time.Since(due).Seconds()
			}
		}()
	}
	all.Wait()
	return took
}

// monotonic is the clock that senders write into messages.
func monotonic() int64 {
	var now syscall.Timespec
	const clock = 1 // CLOCK_MONOTONIC
	if _, _, failed := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&now)), 0); failed != 0 {
		log.Fatal("amqp091-go: ", failed)
	}
	return now.Nano()
}

// consume acknowledges each message; where isTimed, messages say when they were due.
func consume(channel *amqp.Channel, queue string, count int, isTimed bool) (took []float64) {
	check(channel.Qos(prefetch, 0, false))
	deliveries, err := channel.Consume(queue, "", false, false, false, false, nil)
	check(err)
	if isTimed {
		fmt.Println("ready")
	}
	for number := 0; number < count; number++ {
		delivery, isOpen := <-deliveries
		if !isOpen {
			log.Fatal("amqp091-go: the broker closed the channel")
		}
		if isTimed {
			var body struct{ Sent int64 }
			check(json.Unmarshal(delivery.Body, &body))
			took = append(took, float64(monotonic()-body.Sent)/1e9)
		} else {
			var body any
			check(json.Unmarshal(delivery.Body, &body))
		}
		check(delivery.Ack(false))
	}
	return took
}

func main() {
	work, host, port, user, password, vhost := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6]
	queue, mark := os.Args[7], os.Args[8]
	count, err := strconv.Atoi(os.Args[9])
	check(err)
	rate, err := strconv.ParseFloat(os.Args[11], 64)
	check(err)
	var body any
	check(json.Unmarshal([]byte(os.Args[10]), &body))
	address := url.URL{Scheme: "amqp", User: url.UserPassword(user, password), Host: net.JoinHostPort(host, port)}
	connection, err := amqp.DialConfig(address.String(), amqp.Config{Vhost: vhost})
	check(err)
	channel, err := connection.Channel()
	check(err)
	var took []float64
	used, began := cpu(), time.Now()
	switch work {
	case "publish":
		publish(channel, queue, mark, body, count)
	case "confirmed":
		took = confirmed(channel, queue, body, count, rate)
	default:
		took = consume(channel, queue, count, work == "listen")
	}
	each := 1e3 * float64(count)
	fmt.Println(float64(cpu()-used)/each, float64(time.Since(began))/each)
	for _, seconds := range took {
		fmt.Println(seconds)
	}
	check(connection.Close())
}
