//! STOMP 1.0, 1.1 and 1.2 frames and their byte form. Pure: std, bytes and memchr.
