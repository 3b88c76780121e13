// The official SDK for Go does what every client of the matrix does: one line of JSON a check, with what the SDK returned or
// its own error.
//
// The environment says where and as whom; a subject that is called `check-…` tells the stand-in what to answer.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// said is what one check came to.
type said struct {
	Check   string  `json:"check"`
	Text    *string `json:"text,omitempty"`
	Raised  string  `json:"raised,omitempty"`
	Message string  `json:"message"`
}

func main() {
	token := os.Getenv("SDK_TOKEN")
	check("call", func() (string, error) { return call(token, "check-call", true) })
	check("stream", func() (string, error) { return stream(token, "check-stream") })
	check("bad_request", func() (string, error) { return call(token, "check-bad-request", true) })
	check("server_error", func() (string, error) { return call(token, "check-server-error", false) })
	check("retry", func() (string, error) { return call(token, "check-retry", true) })
	check("revoked", func() (string, error) { return call(os.Getenv("SDK_REVOKED_TOKEN"), "check-call", true) })
	check("denied", func() (string, error) { return call(os.Getenv("SDK_DENIED_TOKEN"), "check-call", true) })
}

func check(name string, do func() (string, error)) {
	result := said{Check: name}
	text, err := do()
	var api *openai.Error
	switch {
	case err == nil:
		result.Text = &text
	case errors.As(err, &api):
		// The SDK keeps the server's words out of Error(), for logs: callers read them here.
		result.Raised, result.Message = fmt.Sprintf("Error %d", api.StatusCode), api.Message
	default:
		result.Raised, result.Message = fmt.Sprintf("%T", err), err.Error()
	}
	line, _ := json.Marshal(result)
	fmt.Println(string(line))
}

func client(token string, retries bool) openai.Client {
	options := []option.RequestOption{option.WithAPIKey(token), option.WithBaseURL(os.Getenv("SDK_BASE_URL"))}
	if !retries {
		options = append(options, option.WithMaxRetries(0))
	}
	return openai.NewClient(options...)
}

func question(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:    model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hello?")},
	}
}

func call(token, model string, retries bool) (string, error) {
	client := client(token, retries)
	answer, err := client.Chat.Completions.New(context.Background(), question(model))
	if err != nil {
		return "", err
	}
	return answer.Choices[0].Message.Content, nil
}

func stream(token, model string) (string, error) {
	client := client(token, true)
	events := client.Chat.Completions.NewStreaming(context.Background(), question(model))
	defer events.Close()
	var pieces []string
	for events.Next() {
		if piece := events.Current().Choices[0].Delta.Content; piece != "" {
			pieces = append(pieces, piece)
		}
	}
	return strings.Join(pieces, "|"), events.Err()
}
