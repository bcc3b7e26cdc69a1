-- What KEDA asks the database, and the role as which it asks: it reads this view, and nothing else that is stored.
-- Once, after the first gateway has made its tables, as a role that may make roles:
--   psql "$URL" -v ON_ERROR_STOP=1 -v password="$(openssl rand -hex 24)" -f k8s/keda/scaler.sql
-- Again, it only replaces the view and the password. Like every role of a database it may LISTEN: gateways tell one another the
-- names of tunings and edits that have changed, which hold those of tenants.
BEGIN;

-- 1 is QUEUED, 2 is RUNNING. One row for each base model and tenant that have any, without the tenant's name.
CREATE OR REPLACE VIEW tunings_to_run AS
    SELECT base_model, count(*) AS tunings FROM tunings WHERE state IN (1, 2) GROUP BY base_model, tenant;

-- Whoever owns the tables can then change them.
SELECT format('ALTER VIEW tunings_to_run OWNER TO %I', tableowner) FROM pg_tables
    WHERE schemaname = current_schema() AND tablename = 'tunings' \gexec

SELECT 'CREATE ROLE unitune_scaler' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'unitune_scaler') \gexec
ALTER ROLE unitune_scaler LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT CONNECTION LIMIT 8
    PASSWORD :'password';
ALTER ROLE unitune_scaler SET statement_timeout = '5s';
ALTER ROLE unitune_scaler SET default_transaction_read_only = on;

GRANT SELECT ON tunings_to_run TO unitune_scaler;

COMMIT;
