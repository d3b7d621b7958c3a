#!/bin/sh
# Makes the secrets that the compose files name, once: what is there already stays as it is.
set -eu
folder="$(dirname "$0")/secrets"
mkdir -p "$folder"
chmod 0700 "$folder"

keep() { # name, value
  if [ ! -s "$folder/$1" ]; then
    printf '%s' "$2" > "$folder/$1"
    # Mounted as it is, for users of the containers; on this machine the folder keeps others out.
    chmod 0644 "$folder/$1"
    echo "made $folder/$1"
  fi
}

random() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }

keep label_studio_password "$(random)"
keep label_studio_token "$(random)"
keep webhook_secret "$(random)"
keep basic_auth_password "$(random)"
keep database_password "$(random)"
keep database_url "postgresql+psycopg://lidiv:$(cat "$folder/database_password")@database/lidiv"
