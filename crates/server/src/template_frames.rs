//! Messages between the server and a process that renders templates: a length in four bytes, then
//! as many bytes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A frame that is longer than this is none: sizes of requests and of what templates produce are
/// bounded far below.
const MOST_BYTES: usize = 1 << 30;

/// Writes one frame, its length first.
pub(crate) fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|&n| n as usize <= MOST_BYTES);
    let length = length.ok_or_else(|| io::Error::other("a message of more than 1 GiB"))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)
}

/// The next frame, of at most `most` bytes.
pub(crate) fn read(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > most.min(MOST_BYTES) {
        return Err(io::Error::other("a message longer than expected"));
    }
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes)?;
    match bytes.len() == length {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A socket of which everything has to be done before a moment.
pub(crate) struct Timed<'s> {
    pub(crate) socket: &'s UnixStream,
    pub(crate) until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// A socket whose time is over says that it would block.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(bytes).map_err(timed_out)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_lies_about_lengths_do_not() {
        let mut bytes = Vec::new();
        write(&mut bytes, b"one").unwrap();
        write(&mut bytes, b"").unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from, 3).unwrap(), b"one");
        assert_eq!(read(&mut from, 3).unwrap(), b"");
        assert_eq!(read(&mut from, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(read(&mut bytes.as_slice(), 2).is_err());
        assert!(read(&mut [9, 0, 0, 0, 1].as_slice(), 100).is_err());
    }

    #[test]
    fn time_is_bounded_as_a_whole() {
        let (one, mut other) = UnixStream::pair().unwrap();
        let until = Instant::now() + Duration::from_millis(120);
        // A byte now and then must not begin the time anew.
        let drip = std::thread::spawn(move || {
            while other.write_all(&[1]).is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let error = read(&mut Timed { socket: &one, until }, usize::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(until.elapsed() < Duration::from_secs(2));
        drop(one);
        drip.join().unwrap();
    }
}
