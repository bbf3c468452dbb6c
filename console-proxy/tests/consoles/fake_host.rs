//! A VNC server that does what no real one does on command: counts, stalls, floods, hangs up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// ServerInit of a screen of 640 × 480 named "fake".
pub(crate) const INIT: &[u8] = b"\x02\x80\x01\xe0\x20\x18\0\x01\0\xff\0\xff\0\xff\x10\x08\0\0\0\0\0\0\0\x04fake";

pub(crate) struct FakeHost {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    open: mpsc::UnboundedReceiver<TcpStream>,
}

impl FakeHost {
    /// Lets everybody in who asks for it.
    pub(crate) async fn listen() -> Self {
        Self::saying(|mut stream| async move {
            stream.write_all(b"RFB 003.008\n").await.ok()?;
            stream.read_exact(&mut [0; 12]).await.ok()?;
            stream.write_all(&[1, 1]).await.ok()?;
            stream.read_exact(&mut [0; 1]).await.ok()?;
            stream.write_all(&[0; 4]).await.ok()?;
            stream.read_exact(&mut [0; 1]).await.ok()?;
            stream.write_all(INIT).await.ok()?;
            Some(stream)
        })
        .await
    }

    /// Does something else with each connection.
    pub(crate) async fn saying<F>(mut greet: impl FnMut(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Option<TcpStream>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (to, open) = mpsc::unbounded_channel();
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                if let Some(stream) = greet(stream).await {
                    let _ = to.send(stream);
                }
            }
        });
        Self {
            address,
            connections,
            open,
        }
    }

    /// How often somebody has connected.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The host's end of the next session.
    pub(crate) async fn next(&mut self) -> TcpStream {
        tokio::time::timeout(crate::proxy::LIMIT, self.open.recv())
            .await
            .unwrap()
            .unwrap()
    }
}
