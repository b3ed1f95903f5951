//go:build tools

// Package tools names the programs that are built, so that go.mod keeps what they need.
package tools

import _ "github.com/containerd/fuse-overlayfs-snapshotter/v2/cmd/containerd-fuse-overlayfs-grpc"
