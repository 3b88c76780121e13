#!/bin/sh
# Certificates between the control planes and etcd, and the key-encryption key: made once, kept in volumes.
set -eu
umask 077
[ -e /seks-pki/kek ] && exit 0
work=$(mktemp -d)
cd "$work"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=seks etcd CA" \
    -keyout ca.key -out ca.pem

# leaf NAME SUBJECT-ALTERNATIVE-NAMES USES
leaf() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr"
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\n' "$2" "$3" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -extfile "$1.ext" -out "$1.pem"
}
leaf etcd "DNS:etcd-1,DNS:etcd-2,DNS:etcd-3,DNS:localhost,IP:127.0.0.1" "serverAuth,clientAuth"
leaf client "DNS:seks-control-plane" "clientAuth"

cp ca.pem etcd.pem etcd.key /etcd-pki/
cp ca.pem client.pem client.key /seks-pki/
openssl rand -hex 32 >/seks-pki/kek
chown -R 65532:65532 /seks-pki
rm -rf "$work" # the CA's key with it: nothing else is to be signed
