#!/bin/sh
# Run once, when PostgreSQL makes its cluster: the roles that AIMX signs in as, with the passwords from the environment.
# `aimx db init` finds them there and gives each its rights.
set -eu
psql --set=ON_ERROR_STOP=1 --quiet --no-psqlrc --username="${POSTGRES_USER:-postgres}" --dbname="${POSTGRES_DB:-aimx}" <<'SQL'
\getenv app AIMX_APP_PASSWORD
\getenv seq AIMX_SEQ_PASSWORD
CREATE ROLE aimx_app LOGIN PASSWORD :'app';
CREATE ROLE aimx_seq LOGIN PASSWORD :'seq';
SQL
