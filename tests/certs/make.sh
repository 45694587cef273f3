#!/bin/sh
# Makes the certificates of the tests: valid for a hundred years, good for nothing else.
# Begins in the past, so that a machine whose clock is wrong can run the tests too.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

key() { # name
    openssl ecparam -genkey -name prime256v1 -noout -out "$1.key"
}

certificate() { # name, authority ("" signs itself), end, extension...
    name=$1 authority=$2 end=$3
    shift 3
    printf '%s\n' "$@" > "$work/extensions"
    printf '%s\n' "[ca]" "default_ca=c" "[c]" "new_certs_dir=$work" "database=$work/index" \
        "default_md=sha256" "policy=p" "rand_serial=yes" "unique_subject=no" "[p]" \
        "organizationName=supplied" "commonName=supplied" > "$work/config"
    : > "$work/index"
    openssl req -new -key "$name.key" -subj "/O=greenconn tests/CN=$name" -out "$work/request"
    if [ -n "$authority" ]; then
        signer="-cert $authority.pem -keyfile $authority.key"
    else
        signer="-selfsign -keyfile $name.key"
    fi
    # shellcheck disable=SC2086
    openssl ca -batch -notext -config "$work/config" $signer -in "$work/request" \
        -extfile "$work/extensions" -startdate 20200101000000Z -enddate "$end" -out "$name.pem"
}

end=21200101000000Z
here="subjectAltName=DNS:localhost,DNS:broker.test,IP:127.0.0.1,IP:0:0:0:0:0:0:0:1"
for name in ca other-ca server client elsewhere expired alone; do key $name; done
for name in ca other-ca; do
    certificate $name "" $end "basicConstraints=critical,CA:TRUE" "subjectKeyIdentifier=hash" \
        "keyUsage=critical,keyCertSign,cRLSign"
done
leaf="authorityKeyIdentifier=keyid"
certificate server ca $end "$leaf" "$here"
certificate client ca $end "$leaf" "extendedKeyUsage=clientAuth"
certificate elsewhere ca $end "$leaf" "subjectAltName=DNS:elsewhere.test"
certificate alone "" $end "$here"
certificate expired ca 20210101000000Z "$leaf" "$here"
openssl ec -in client.key -aes256 -passout pass:secret -out client-locked.key
rm ca.key other-ca.key
