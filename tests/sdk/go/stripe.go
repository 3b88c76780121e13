package main

import (
	"context"

	"github.com/stripe/stripe-go/v83"
)

func callStripe(token, customer string, retries bool) (string, error) {
	config := &stripe.BackendConfig{URL: stripe.String(base), LeveledLogger: &stripe.LeveledLogger{}}
	if !retries {
		config.MaxNetworkRetries = stripe.Int64(0)
	}
	client := stripe.NewClient(token, stripe.WithBackends(stripe.NewBackendsWithConfig(config)))
	found, err := client.V1Customers.Retrieve(context.Background(), customer, nil)
	if err != nil {
		return "", err
	}
	return found.Name, nil
}
