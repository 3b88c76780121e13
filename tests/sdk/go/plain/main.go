// A call with Go's standard library alone: plain URL [BODY]. Prints protocol and status, then the answer's lines as they come.
//
// What Go programs share is that: proxy, roots and HTTP/2 are the default transport's, told by HTTPS_PROXY and SSL_CERT_FILE. A
// TOKEN in the environment goes into the request.
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strings"
)

func main() {
	method, body := http.MethodGet, ""
	if len(os.Args) > 2 {
		method, body = http.MethodPost, os.Args[2]
	}
	request, err := http.NewRequest(method, os.Args[1], strings.NewReader(body))
	if err != nil {
		fail(err)
	}
	if token := os.Getenv("TOKEN"); token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		fail(err)
	}
	defer answer.Body.Close()
	fmt.Println(answer.Proto, answer.StatusCode)
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		fmt.Println(lines.Text())
	}
	if err := lines.Err(); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
