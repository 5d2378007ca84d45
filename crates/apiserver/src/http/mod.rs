//! The HTTP edge: bodies, content negotiation, compression and listeners.

pub mod body;
pub mod listen;
pub mod negotiate;
mod stall;
pub mod warning;
pub mod websocket;
