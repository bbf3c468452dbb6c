//! Console proxy: shows the screens of VMs in a browser. Facts: console-proxy.md; § numbers refer to it.
//!
//! | module | |
//! |---|---|
//! | [`config`] | what it must know to start |
//! | [`proxy`] | the program: obeys the management server, opens listeners, ends |
//! | [`http`] | requests of browsers: page, WebSocket upgrade, status |
//! | [`page`] | the files of the console page |
//! | [`token`] | what a browser shows to get in |
//! | [`auth`] | asking whether it may |
//! | [`sessions`] | who is allowed, who is looking, and what the management server is told of it |
//! | [`session`] | one viewer, from the upgrade to the end |
//! | [`backend`] | the way to the host |
//! | [`rfb`] | the VNC protocol: both handshakes, message lengths |
//! | [`relay`] | bytes from host to browser and back |
//! | [`browser`], [`ws`] | the WebSocket of a viewer, and its frames |
//! | [`buffers`] | memory that only moving bytes occupy |
//! | [`tls`], [`keystore`] | the certificate that browsers see |
//! | [`metrics`] | numbers for Prometheus |

pub mod auth;
pub mod backend;
pub mod browser;
pub mod buffers;
pub mod config;
pub mod http;
pub mod keystore;
pub mod metrics;
pub mod page;
pub mod proxy;
pub mod relay;
pub mod rfb;
pub mod session;
pub mod sessions;
pub mod tls;
pub mod token;
pub mod ws;
