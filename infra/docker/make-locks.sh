#!/bin/sh
# Writes infra/docker/locks/<extra>.lock: what one image installs, at the versions of requirements.lock.
# Part of `make lock`, after requirements.lock was made. UV names the uv to use.
set -eu
cd "$(dirname "$0")/../.."
uv=${UV:-.venv/bin/uv}
locks=infra/docker/locks

lock() {
    name=$1
    shift
    # --python-version: the oldest that pyproject.toml allows, as in requirements.lock. The header names the way to make it again.
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
        --custom-compile-command infra/docker/make-locks.sh --output-file "$locks/$name.lock" "$@" >/dev/null
}

for extra in api dispatcher webhooks ar decoder; do
    lock "$extra" pyproject.toml --extra "$extra" --constraint requirements.lock --overrides infra/lock-overrides.txt
done
# What builds the images: this uv, and the backend that pyproject.toml names.
version=$("$uv" --version | cut -d ' ' -f 2)
printf 'setuptools>=80\nuv==%s\n' "$version" | lock build -
