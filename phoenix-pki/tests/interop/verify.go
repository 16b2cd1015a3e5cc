// Verifies chains as Go's TLS does. Each line of standard input is one case:
// root, intermediate and leaf (PEM files), seconds since 1970, purpose, name; for each a verdict is printed.
package main

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

func read(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

func verify(root, intermediate, leaf, at, purpose, name string) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for path, pool := range map[string]*x509.CertPool{root: roots, intermediate: intermediates} {
		certificate, err := read(path)
		if err != nil {
			return err
		}
		pool.AddCert(certificate)
	}
	certificate, err := read(leaf)
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return err
	}
	usage := x509.ExtKeyUsageServerAuth
	if purpose == "client" {
		usage = x509.ExtKeyUsageClientAuth
	}
	_, err = certificate.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   time.Unix(seconds, 0),
		DNSName:       name,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	return err
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		field := strings.Split(lines.Text(), "\t")
		if err := verify(field[0], field[1], field[2], field[3], field[4], field[5]); err != nil {
			fmt.Println("refused:", err)
		} else {
			fmt.Println("accepted")
		}
	}
}
