// A proxy in front of the API server that gives its clients bad days. It ends TLS with the cluster's own certificates; who a client is,
// by certificate or token, stays so: the API server trusts this proxy's word as that of any front proxy.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

var (
	listen = flag.String("listen", ":6444", "where clients are sent")
	server = flag.String("server", "127.0.0.1:6443", "the API server")
	pki    = flag.String("pki", "", "folder of the cluster's certificates")
	gone   = flag.Float64("gone", 0, "end each watch after so many seconds, with 410")
	busy   = flag.Float64("busy", 0, "share of requests that get 429, from 0 to 1")
	cut    = flag.Float64("cut", 0, "reset each connection after so many seconds")
	delay  = flag.Float64("delay", 0, "hold each request for so many seconds")
	agent  = flag.String("agent", "", "only clients whose User-Agent begins with this (cuts are for all)")
)

const expired = `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",` +
	`"message":"too old resource version","reason":"Expired","code":410}}` + "\n"

const tooMany = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",` +
	`"message":"too many requests","reason":"TooManyRequests","details":{"retryAfterSeconds":1},"code":429}` + "\n"

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// A listener whose connections end with a reset after a while.
type cutting struct{ net.Listener }

func (l cutting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil && *cut > 0 {
		time.AfterFunc(seconds(*cut), func() {
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		})
	}
	return conn, err
}

// The body of a watch. At its time it ends: with an event that says why if clients of this encoding can read one, else without.
type watch struct {
	io.ReadCloser
	last io.Reader
	mu   sync.Mutex
	over bool
}

func (w *watch) end() {
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
	w.ReadCloser.Close()
}

func (w *watch) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n == 0 && w.over {
		return w.last.Read(p)
	}
	return n, err
}

func meant(r *http.Request) bool { return strings.HasPrefix(r.UserAgent(), *agent) }

func isWatch(r *http.Request) bool {
	asked := r.URL.Query().Get("watch")
	return asked == "1" || asked == "true"
}

func endWatches(response *http.Response) error {
	r := response.Request
	if *gone <= 0 || response.StatusCode != http.StatusOK || !isWatch(r) || !meant(r) {
		return nil
	}
	last := ""
	if strings.HasPrefix(response.Header.Get("Content-Type"), "application/json") {
		last = expired
	}
	body := &watch{ReadCloser: response.Body, last: strings.NewReader(last)}
	time.AfterFunc(seconds(*gone), body.end)
	response.Body = body
	return nil
}

// Events that are compressed could not be followed by ours.
func director(out *httputil.ProxyRequest) {
	out.SetURL(&url.URL{Scheme: "https", Host: *server})
	out.Out.Host = out.In.Host
	out.Out.Header.Del("Accept-Encoding")
	for name := range out.Out.Header {
		if strings.HasPrefix(name, "X-Remote-") {
			out.Out.Header.Del(name)
		}
	}
	if certs := out.In.TLS.PeerCertificates; len(certs) > 0 {
		out.Out.Header.Set("X-Remote-User", certs[0].Subject.CommonName)
		for _, group := range certs[0].Subject.Organization {
			out.Out.Header.Add("X-Remote-Group", group)
		}
	}
}

func main() {
	flag.Parse()
	path := func(name string) string { return filepath.Join(*pki, name) }
	pem, err := os.ReadFile(path("ca.crt"))
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	front, err := tls.LoadX509KeyPair(path("front-proxy.crt"), path("front-proxy.key"))
	check(err)

	// HTTP/1.1 to the API server: upgrades (exec) pass, and no two clients share a connection that a cut would end for both.
	transport := func(certs []tls.Certificate) http.RoundTripper {
		return &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: roots, Certificates: certs},
			TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
			MaxIdleConnsPerHost: 100,
			DisableCompression:  true,
		}
	}
	proxy := func(certs []tls.Certificate) *httputil.ReverseProxy {
		return &httputil.ReverseProxy{Rewrite: director, Transport: transport(certs), FlushInterval: -1, ModifyResponse: endWatches}
	}
	// A bearer of a token is passed on without our certificate: the API server would take them for us.
	known, others := proxy([]tls.Certificate{front}), proxy(nil)

	handle := func(w http.ResponseWriter, r *http.Request) {
		if meant(r) {
			time.Sleep(seconds(*delay))
			if rand.Float64() < *busy {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusTooManyRequests)
				io.WriteString(w, tooMany)
				return
			}
		}
		if len(r.TLS.PeerCertificates) > 0 {
			known.ServeHTTP(w, r)
		} else {
			others.ServeHTTP(w, r)
		}
	}
	listener, err := net.Listen("tcp", *listen)
	check(err)
	service := &http.Server{
		Handler:   http.HandlerFunc(handle),
		TLSConfig: &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots},
	}
	err = service.ServeTLS(cutting{listener}, path("apiserver.crt"), path("apiserver.key"))
	if !errors.Is(err, http.ErrServerClosed) {
		check(err)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
