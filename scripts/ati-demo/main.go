// Command ati-demo is only for scripts/demo.sh, and never part of a release. It is a client
// and, for machines without ATI, the smallest proxy that ati-guard accepts:
//
//	ati-demo expect STATUS URL TOKEN   get the URL until it responds with the status
//	ati-demo proxy OPTIONS             respond to each valid token with an empty list
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"vault-plugin-secrets-ati/ati"
)

func main() {
	log.SetFlags(0)
	err := errors.New("usage: ati-demo expect STATUS URL TOKEN | ati-demo proxy OPTIONS")
	switch args := os.Args[1:]; {
	case len(args) == 4 && args[0] == "expect":
		err = expect(args[1], args[2], args[3])
	case len(args) > 0 && args[0] == "proxy":
		err = proxy(args[1:])
	}
	if err != nil {
		log.Fatal(err)
	}
}

func expect(status, url, token string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got := get(url, token)
		if strings.HasPrefix(got, "HTTP "+status+":") {
			fmt.Println(got)
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("expected HTTP %s, got %s", status, got)
		}
	}
}

func get(url, token string) string {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("HTTP %d: %s", resp.StatusCode, body)
}

// proxy has the options with which the guard starts the ATI proxy.
func proxy(args []string) error {
	options := flag.NewFlagSet("ati-demo proxy", flag.ExitOnError)
	bind, port := options.String("bind", "", ""), options.String("port", "", "")
	options.String("ati-dir", "", "not used")
	options.Bool("env-keys", false, "not used")
	_ = options.Parse(args)
	key, err := ati.ParseSecret(os.Getenv("ATI_JWT_SECRET"))
	if err != nil {
		return err
	}
	audience := ati.WithAudience(strings.Split(os.Getenv("ATI_JWT_ACCEPTED_AUDIENCES"), ",")...)
	return http.ListenAndServe(net.JoinHostPort(*bind, *port), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if _, err := ati.ValidateToken(token, key, audience); err != nil {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "[]")
	}))
}
