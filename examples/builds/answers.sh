#!/bin/sh
# The test that both builds answer: a line for each question. `stagegbo run` gives it the addresses.
set -eu

ready() { # a build answers 503 until it has reached what it needs
  tries=0
  until curl -sf "$BOTSERVER_URL/health"; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || exit 1
    sleep 0.5
  done
}

ask() { printf '%s: %s\n' "$1" "$(psql "$DATABASE_URL" -XqAt -c "$2")"; }

printf 'BotServer is %s\n' "$(ready | jq -r .status)"
ask users 'SELECT count(*) FROM users'
ask bots "SELECT string_agg(name, ' ' ORDER BY name) FROM bots"
ask columns "SELECT string_agg(column_name, ' ' ORDER BY column_name) FROM information_schema.columns
  WHERE table_name = 'bots'"
