//! The listener against real sockets: handshake, pages, files, TLS, WebSocket messages in both directions, closing.

mod certificates;
mod client_certificates;
mod http;
mod malformed_tls;
mod server;
mod tls;
mod tls_server;
mod websocket;
