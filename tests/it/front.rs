//! The listener against real sockets: handshake, pages, files, TLS, WebSocket messages in both directions, closing.

mod certificates;
mod http;
mod server;
mod tls;
mod websocket;
