//! What the router does for its networks besides passing packets. Each service has threads of its own: none of it runs on
//! the thread of the event loop, and none of it can hold a failover up.

pub mod tls_offload;
