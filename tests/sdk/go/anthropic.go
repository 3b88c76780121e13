package main

import (
	"context"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
)

func anthropicClient(token string, retries bool) anthropic.Client {
	options := []option.RequestOption{option.WithAPIKey(token), option.WithBaseURL(base)}
	if !retries {
		options = append(options, option.WithMaxRetries(0))
	}
	return anthropic.NewClient(options...)
}

func anthropicQuestion(model string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model:     anthropic.Model(model),
		MaxTokens: 16,
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Hello?"))},
	}
}

func callAnthropic(token, model string, retries bool) (string, error) {
	client := anthropicClient(token, retries)
	answer, err := client.Messages.New(context.Background(), anthropicQuestion(model))
	if err != nil {
		return "", err
	}
	return answer.Content[0].Text, nil
}

func streamAnthropic(token, model string) (pieces []string, err error) {
	client := anthropicClient(token, true)
	events := client.Messages.NewStreaming(context.Background(), anthropicQuestion(model))
	for events.Next() {
		if delta, ok := events.Current().AsAny().(anthropic.ContentBlockDeltaEvent); ok {
			pieces = append(pieces, delta.Delta.Text)
		}
	}
	return pieces, events.Err()
}
