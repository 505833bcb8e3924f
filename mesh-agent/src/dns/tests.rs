//! Tests of the DNS server.
