#!/bin/sh
# Production's build and yours answer the same test, each in a slot of its own, on the same data.
#   examples/builds/compare.sh target/release/botserver [options of stagegbo, such as --lab]
# Prints what they answer differently; status 1 when there is something.
set -eu
here=$(dirname "$0")
build=$1
shift
found=$(mktemp -d)
trap 'rm -r "$found"' EXIT

stagegbo "$@" provision --slots 2
stagegbo "$@" deploy system --undo
stagegbo "$@" --slot 1 deploy system "botserver=$build"
for slot in 0 1; do
  stagegbo "$@" --slot $slot run -- "$here/answers.sh" >"$found/$slot"
done
diff -U 0 --label production "$found/0" --label "$build" "$found/1"
