#!/usr/bin/env bash
# oci-archive.sh NAME ROOT ARCHIVE [COMMAND..]: packs the directory ROOT as the one layer of an OCI image NAME, in a tar file that
# `ctr images import` takes. The same ROOT gives the same bytes: times are 0, owners are root, names are sorted.
# Format: https://github.com/opencontainers/image-spec, image-layout.md.
set -euo pipefail
umask 022
name=$1 root=$2 archive=$3
shift 3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
layout=$work/layout
mkdir -p "$layout/blobs/sha256"

pack() { tar --create --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --directory="$1" "${@:2}"; }

# Keeps standard input as a blob and says how to refer to it.
blob() {
    cat >"$work/blob"
    local digest
    digest=$(sha256sum "$work/blob" | cut -d' ' -f1)
    mv "$work/blob" "$layout/blobs/sha256/$digest"
    printf '"mediaType":"%s","digest":"sha256:%s","size":%s' "$1" "$digest" "$(stat -c %s "$layout/blobs/sha256/$digest")"
}

case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac

command=
for word in "$@"; do
    command+=${command:+,}\"$word\"
done

layer=$(pack "$root" . | blob application/vnd.oci.image.layer.v1.tar)
# The layer is not compressed, so that its digest is that of its content too.
content=${layer#*\"digest\":\"}
content=${content%%\"*}
config=$(
    printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":[%s]},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
        "$architecture" "$command" "$content" | blob application/vnd.oci.image.config.v1+json
)
manifest=$(
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{%s},"layers":[{%s}]}' \
        "$config" "$layer" | blob application/vnd.oci.image.manifest.v1+json
)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$manifest" "$architecture" "$name" "${name##*:}" >"$layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
pack "$layout" --transform='s,^\./,,' --file="$archive" oci-layout index.json blobs
