-- Roles and schemas, once per database, by its superuser. `migrator` owns the schemas; a service's role may use its own
-- and nothing else, and gets its rights on tables from the migrations.
CREATE EXTENSION IF NOT EXISTS btree_gist;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON DATABASE plexsphere FROM PUBLIC;
CREATE ROLE migrator LOGIN;
GRANT CONNECT ON DATABASE plexsphere TO migrator;

CREATE ROLE identity LOGIN;
CREATE ROLE access LOGIN;
CREATE ROLE secrets LOGIN;
CREATE ROLE mesh LOGIN;
CREATE ROLE audit LOGIN;
GRANT CONNECT ON DATABASE plexsphere TO identity, access, secrets, mesh, audit;

CREATE SCHEMA identity AUTHORIZATION migrator;
CREATE SCHEMA access AUTHORIZATION migrator;
CREATE SCHEMA secrets AUTHORIZATION migrator;
CREATE SCHEMA mesh AUTHORIZATION migrator;
CREATE SCHEMA audit AUTHORIZATION migrator;
GRANT USAGE ON SCHEMA identity TO identity;
GRANT USAGE ON SCHEMA access TO access;
GRANT USAGE ON SCHEMA secrets TO secrets;
GRANT USAGE ON SCHEMA mesh TO mesh;
GRANT USAGE ON SCHEMA audit TO audit;
ALTER ROLE identity SET search_path = identity;
ALTER ROLE access SET search_path = access;
ALTER ROLE secrets SET search_path = secrets;
ALTER ROLE mesh SET search_path = mesh;
ALTER ROLE audit SET search_path = audit;
