"""What greenconn costs over brokers that are stores of leased messages."""
