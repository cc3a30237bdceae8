#!/bin/sh
# A test in no language of ours: it finds the stage by its environment, as `stagegbo run` gives it.
#   stagegbo run --reset drive -- examples/programs/check.sh
# One line a check, in the Test Anything Protocol; status 1 when one of them fails.
set -u
number=0
failed=0

check() { # NAME GOT EXPECTED
  number=$((number + 1))
  if [ "$2" = "$3" ]; then
    echo "ok $number - $1"
  else
    failed=1
    printf 'not ok %d - %s\n# expected %s, got %s\n' "$number" "$1" "$3" "$2"
  fi
}

users=$(psql "$DATABASE_URL" -XqAt -c 'SELECT count(*) > 0 FROM users')
check "production's users are in the database" "$users" t

where=$(psql "$DATABASE_URL" -XqAt -c 'SELECT host(inet_server_addr())')
check "it is the stage's database" "$where" "$DB_HOST"

sealed=$(curl -s "$VAULT_ADDR/v1/sys/seal-status" | jq .sealed)
check "Vault is open" "$sealed" false

models=$(curl -s "$OPENAI_BASE_URL/models" | jq '.data | length')
check "there is one model" "$models" 1

# Credentials go to curl on its standard input: arguments are seen by every user of the host.
signed() {
  printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" |
    curl -s --config - --aws-sigv4 "aws:amz:$AWS_REGION:s3" "$@"
}
buckets=$(signed "$AWS_ENDPOINT_URL/" | grep -c '<Bucket>')
check "drive was reset, so it has no bucket" "$buckets" 0

echo "1..$number"
exit $failed
