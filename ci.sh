#!/usr/bin/env bash
# The jobs of CI, the same ones locally: ./ci.sh JOB... (without a job: all of them).
set -euo pipefail
cd "$(dirname "$0")"

# The user that tests run as when we are root; .ci/setup.sh makes it.
TEST_USER=rltest

job_setup() { .ci/setup.sh; }

job_build() { cargo build --workspace --release --locked; }

job_fmt() { cargo fmt --all --check; }

job_clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

# Each feature set compiles alone: the pure stack is promised to need no system calls.
job_features() {
    cargo clippy --locked -p netstack --no-default-features -- -D warnings
    cargo clippy --locked -p netstack --no-default-features --features testing -- -D warnings
    cargo clippy --locked -p netstack --all-features --all-targets -- -D warnings
    cargo clippy --locked -p examples --all-targets --features tun-tap -- -D warnings
}

job_doc() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked; }

job_deny() {
    if ! command -v cargo-deny >/dev/null; then
        echo "deny: installing cargo-deny"
        cargo install cargo-deny --version '^0.20' --locked --quiet --root "${CARGO_INSTALL_ROOT:-$HOME/.cargo}" || {
            echo "SKIPPED deny: cargo-deny could not be installed"
            return 0
        }
    fi
    cargo deny --all-features check bans licenses sources
    # The advisory database is not a crate; where it cannot be fetched the check is left out by name.
    if ! cargo deny --all-features check advisories; then
        if compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/advisory-db-*/" >/dev/null; then
            return 1
        fi
        echo "SKIPPED advisories: the advisory database cannot be fetched from here"
    fi
}

# All tests as an ordinary user. Namespace tests want the release build of the product beside them.
job_test() {
    job_build
    local list
    list=$(mktemp)
    cargo test --workspace --locked --no-run --message-format=json >"$list"
    local log
    log=$(mktemp)
    local failed=0
    while IFS=$'\t' read -r directory program; do
        echo "== ${program##*/}"
        # The rules of dependencies ask cargo, which belongs to whoever builds.
        local run=as_test_user
        case "$program" in */core_deps-*) run= ;; esac
        local from
        from=$(wc -l <"$log")
        (cd "$directory" && $run "$program") 2>&1 | tee -a "$log" && continue
        # Whoever else computes here can spoil a deadline, so what failed gets a second chance, alone; it is told either way.
        local again
        again=$(tail -n "+$((from + 1))" "$log" | sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' | sort -u)
        # None to name means that the program itself fell, many that something is broken.
        if [ -z "$again" ] || [ "$(wc -w <<<"$again")" -gt 4 ]; then
            failed=1
            continue
        fi
        echo "again: ${program##*/}:" $again
        # shellcheck disable=SC2086 # One word per test.
        if (cd "$directory" && $run "$program" --exact --test-threads 1 $again) 2>&1 | tee -a "$log"; then
            echo "FLAKY ${program##*/}:" $again | tee -a "$log"
        else
            failed=1
        fi
    done < <(jq -r 'select(.executable != null and .profile.test) | [(.manifest_path | rtrimstr("/Cargo.toml")), .executable] | @tsv' "$list")
    cargo test --workspace --locked --doc --quiet || failed=1
    echo "tests that could not run here: $(grep -c '^SKIPPED' "$log" || true)"
    grep '^SKIPPED' "$log" || true
    echo "tests that passed only alone: $(grep -c '^FLAKY' "$log" || true)"
    grep '^FLAKY' "$log" || true
    rm -f "$list" "$log"
    return "$failed"
}

# The corpus of every fuzz target, replayed by ordinary tests (they are part of the workspace's tests as well).
job_fuzz_replay() { cargo test -p fuzz --locked; }

# Instructions of the pure core's scenarios against benches/icounts.csv; counted, not timed, so that a busy machine is no excuse.
job_icounts() {
    # An incremental build inlines otherwise.
    export CARGO_INCREMENTAL=0
    job_build
    "$TARGET/release/icounts" check
}

job_bench_smoke() {
    # Every comparison and the report of them, in a temporary directory.
    as_test_user "$TARGET/release/all" --smoke
}

as_test_user() {
    if [ "$(id -u)" -ne 0 ]; then
        "$@"
    else
        setpriv --reuid="$TEST_USER" --regid="$TEST_USER" --init-groups \
            env -i HOME=/tmp PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" LANG=C.UTF-8 \
            ROOTLESS_LAUNCH="$TARGET/release/rootless-launch" ROOTLESS_LAUNCH_COMPONENTS="${ROOTLESS_LAUNCH_COMPONENTS-}" ROOTLESS_LAUNCH_VM="${ROOTLESS_LAUNCH_VM-}" "$@"
    fi
}

# Tests run as a user who has to be able to read all this: where a checkout is private to root, work on a copy.
move_if_unreadable() {
    [ "$(id -u)" -eq 0 ] || return 0
    as_test_user test -r "$PWD/ci.sh" && return 0
    local copy=/var/tmp/rootless-launch-ci
    echo "$PWD is not readable for $TEST_USER: going on in $copy"
    rm -rf "$copy/tree"
    mkdir -p "$copy/tree"
    tar --exclude=./target -cf - . | tar -xf - -C "$copy/tree"
    chmod 0755 "$copy" "$copy/tree"
    export CARGO_TARGET_DIR="$copy/target"
    exec "$copy/tree/ci.sh" "$@"
}

TARGET=${CARGO_TARGET_DIR:-$PWD/target}
if [ "$#" -eq 0 ]; then
    set -- setup test fmt clippy features doc deny fuzz-replay icounts bench-smoke
fi
while [ "$#" -gt 0 ]; do
    [ "$1" = setup ] || move_if_unreadable "$@"
    echo "==== $1"
    start=$SECONDS
    "job_${1//-/_}"
    echo "==== $1: $((SECONDS - start)) s"
    shift
done
