-- SpiceDB's own database, which no service may enter.
CREATE ROLE spicedb LOGIN;
CREATE DATABASE spicedb OWNER spicedb;
REVOKE ALL ON DATABASE spicedb FROM PUBLIC;
