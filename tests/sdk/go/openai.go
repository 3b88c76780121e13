package main

import (
	"context"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func openAI(token string, retries bool) openai.Client {
	options := []option.RequestOption{option.WithAPIKey(token), option.WithBaseURL(base)}
	if !retries {
		options = append(options, option.WithMaxRetries(0))
	}
	return openai.NewClient(options...)
}

func openAIQuestion(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:    model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hello?")},
	}
}

func callOpenAI(token, model string, retries bool) (string, error) {
	client := openAI(token, retries)
	answer, err := client.Chat.Completions.New(context.Background(), openAIQuestion(model))
	if err != nil {
		return "", err
	}
	return answer.Choices[0].Message.Content, nil
}

func streamOpenAI(token, model string) (pieces []string, err error) {
	client := openAI(token, true)
	events := client.Chat.Completions.NewStreaming(context.Background(), openAIQuestion(model))
	for events.Next() {
		if piece := events.Current().Choices[0].Delta.Content; piece != "" {
			pieces = append(pieces, piece)
		}
	}
	return pieces, events.Err()
}
