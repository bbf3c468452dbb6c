//! Lines of a peer that may be hostile: never more than a limit in memory.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Takes lines off a stream.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    /// What has arrived of the next line.
    line: Vec<u8>,
    limit: usize,
    /// `line` was given out.
    is_taken: bool,
}

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub enum BadLine {
    /// It has no end.
    #[error("a line has more than {0} bytes")]
    TooLong(usize),
    /// The peer left in the middle of one.
    #[error("the last line is cut off")]
    Cut,
    /// The connection.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R, limit: usize) -> Self {
        Self {
            reader,
            line: Vec::new(),
            limit,
            is_taken: false,
        }
    }

    /// The same stream, for lines of another length.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// The next line without its end; `None` when the peer has closed the stream. May be dropped and called again: what has
    /// arrived is kept. After an error the stream is of no use.
    pub(crate) async fn next(&mut self) -> Result<Option<&[u8]>, BadLine> {
        if self.is_taken {
            self.line.clear();
            self.is_taken = false;
        }
        loop {
            let available = self.reader.fill_buf().await?;
            if available.is_empty() {
                return if self.line.is_empty() {
                    Ok(None)
                } else {
                    Err(BadLine::Cut)
                };
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let piece = &available[..end.unwrap_or(available.len())];
            if self.line.len() + piece.len() > self.limit {
                return Err(BadLine::TooLong(self.limit));
            }
            self.line.extend_from_slice(piece);
            let used = piece.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                self.is_taken = true;
                return Ok(Some(&self.line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::BufReader;

    use super::*;

    async fn all(bytes: &[u8], limit: usize) -> (Vec<Vec<u8>>, Option<BadLine>) {
        // A small buffer: lines come in pieces.
        let mut lines = Lines::new(BufReader::with_capacity(3, bytes), limit);
        let mut found = Vec::new();
        loop {
            match lines.next().await {
                Ok(Some(line)) => found.push(line.to_vec()),
                Ok(None) => return (found, None),
                Err(error) => return (found, Some(error)),
            }
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(work)
    }

    proptest! {
        #[test]
        fn lines_come_whole_and_none_is_longer_than_the_limit(bytes: Vec<u8>, limit in 0_usize..40) {
            let (found, error) = block_on(all(&bytes, limit));
            let mut wanted: Vec<_> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            let rest = wanted.pop().unwrap_or_default();
            let fitting: Vec<_> = wanted.iter().take_while(|line| line.len() <= limit).cloned().collect();
            prop_assert_eq!(&found, &fitting);
            let is_long = fitting.len() < wanted.len() || rest.len() > limit;
            match error {
                None => prop_assert!(!is_long && rest.is_empty()),
                Some(BadLine::Cut) => prop_assert!(!is_long && !rest.is_empty()),
                Some(BadLine::TooLong(_)) => prop_assert!(is_long),
                Some(BadLine::Io(error)) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
    }
}
