// The official SDKs for Go, one client each: `sdk openai|anthropic|github|stripe`.
//
// Each prints one line of JSON a check, with what the SDK returned or raised. The environment says where and as whom; a
// subject that is called `check-…` tells the stand-in what to answer.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// A call of an SDK: the stand-in's greeting, or the SDK's own error.
type call func(token, subject string, retries bool) (string, error)

// A streamed call: the pieces of the greeting.
type stream func(token, subject string) ([]string, error)

var base = os.Getenv("SDK_BASE_URL")

func check(name string, text string, err error) {
	said := map[string]any{"check": name, "text": text}
	if err != nil {
		said = map[string]any{"check": name, "raised": strings.TrimPrefix(fmt.Sprintf("%T", err), "*"), "message": err.Error()}
	}
	line, _ := json.Marshal(said)
	fmt.Println(string(line))
}

func matrix(call call, stream stream) {
	token := os.Getenv("SDK_TOKEN")
	run := func(name, token, subject string, retries bool) {
		text, err := call(token, subject, retries)
		check(name, text, err)
	}
	run("call", token, "check-call", true)
	if stream != nil {
		pieces, err := stream(token, "check-stream")
		check("stream", strings.Join(pieces, "|"), err)
	}
	run("bad_request", token, "check-bad-request", true)
	run("server_error", token, "check-server-error", false)
	run("retry", token, "check-retry", true)
	run("revoked", os.Getenv("SDK_REVOKED_TOKEN"), "check-call", true)
	run("denied", os.Getenv("SDK_DENIED_TOKEN"), "check-call", true)
}

func main() {
	switch os.Args[1] {
	case "openai":
		matrix(callOpenAI, streamOpenAI)
	case "anthropic":
		matrix(callAnthropic, streamAnthropic)
	case "github":
		matrix(callGitHub, nil)
	case "stripe":
		matrix(callStripe, nil)
	default:
		fmt.Fprintln(os.Stderr, "no client for", os.Args[1])
		os.Exit(2)
	}
}
