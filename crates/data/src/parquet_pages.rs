//! Looks at the pages of a Parquet column before the parser does, which takes the memory that their
//! headers ask for.
//!
//! A page header is a struct of Thrift's compact protocol: a byte for each field (what it adds to
//! the last number, and a type), then its value.

use flate2::bufread::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// A page may hold this many times the bytes of the longest row: writers put many rows into one.
const ROWS_A_PAGE: usize = 4;
/// Bytes of a page header: statistics in it quote values.
const MOST_HEADER: u64 = 16 << 20;
/// Structs within structs in a page header; statistics are the second level.
const DEEPEST: usize = 8;

/// The pages of a column in a row group.
pub(crate) struct Pages {
    start: u64,
    end: u64,
    values: i64,
    gzip: bool,
    /// What a page may hold.
    pub(crate) most_bytes: usize,
}

impl Pages {
    /// Those of a column of which a row has at most `max_row` bytes.
    pub(crate) fn of(chunk: &ColumnChunkMetaData, max_row: usize) -> Result<Self, String> {
        Self::of_bytes(chunk, max_row.saturating_mul(ROWS_A_PAGE))
    }

    /// Those of a column of which a page has at most `most_bytes`.
    pub(crate) fn of_bytes(chunk: &ColumnChunkMetaData, most_bytes: usize) -> Result<Self, String> {
        let at = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        let start = u64::try_from(at).map_err(|_| format!("{at} as the place of a column"))?;
        let length = chunk.compressed_size();
        let length =
            u64::try_from(length).map_err(|_| format!("{length} as the length of a column"))?;
        Ok(Self {
            start,
            end: start.saturating_add(length),
            values: chunk.num_values(),
            gzip: matches!(chunk.compression(), Compression::GZIP(_)),
            most_bytes,
        })
    }
}

/// The bytes of the largest page, unpacked.
///
/// # Errors
/// A page that holds more than it may, or a header that makes no sense.
pub(crate) fn check(file: &File, pages: &Pages) -> Result<usize, String> {
    let mut from = BufReader::with_capacity(1 << 16, file);
    let (mut at, mut values, mut largest) = (pages.start, 0i64, 0);
    while at < pages.end && values < pages.values {
        from.seek(SeekFrom::Start(at)).map_err(damaged)?;
        let mut header = Counted { from: (&mut from).take(MOST_HEADER), read: 0 };
        let page = PageHeader::read(&mut header).map_err(damaged)?;
        let length = header.read;
        let (Ok(packed), Ok(unpacked)) =
            (u64::try_from(page.packed), usize::try_from(page.unpacked))
        else {
            return Err("a page with a size below 0".to_owned());
        };
        if unpacked > pages.most_bytes || packed > pages.most_bytes as u64 {
            let found = unpacked.max(usize::try_from(packed).unwrap_or(usize::MAX));
            return Err(too_large(&found.to_string(), pages.most_bytes));
        }
        if pages.gzip {
            // The parser unpacks as much as there is, whatever the header says.
            let level_bytes = u64::try_from(page.level_bytes).unwrap_or(0).min(packed);
            from.seek(SeekFrom::Start(at + length + level_bytes)).map_err(damaged)?;
            let unpacking = MultiGzDecoder::new((&mut from).take(packed - level_bytes));
            let most = pages.most_bytes as u64;
            let size = io::copy(&mut unpacking.take(most + 1), &mut io::sink());
            // What is no gzip is the parser's to name.
            if size.is_ok_and(|size| size > most) {
                return Err(too_large("more", pages.most_bytes));
            }
        }
        largest = largest.max(unpacked);
        values = values.saturating_add(page.values.max(0).into());
        at = at.saturating_add(length).saturating_add(packed);
    }
    Ok(largest)
}

fn damaged(error: io::Error) -> String {
    format!("a page header that cannot be read: {error}")
}

fn too_large(found: &str, most: usize) -> String {
    format!("a page of {found} bytes, expected at most {most} ({ROWS_A_PAGE} times max_row)")
}

/// Counts the bytes that are read.
struct Counted<R> {
    from: R,
    read: u64,
}

impl<R: Read> Counted<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.from.read_exact(&mut byte)?;
        self.read += 1;
        Ok(byte[0])
    }

    /// An unsigned number in groups of seven bits, the lowest first.
    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0u64;
        for group in 0..10 {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * group);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(nonsense("a number of more than 64 bits"))
    }

    /// A signed number: its sign is the lowest bit.
    fn number(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut (&mut self.from).take(bytes), &mut io::sink())?;
        self.read += passed;
        if passed == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

fn nonsense(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

const STOP: u8 = 0;
const I32: u8 = 5;
const STRUCT: u8 = 12;

/// What a page header says about sizes.
#[derive(Debug, Default, PartialEq, Eq)]
struct PageHeader {
    unpacked: i32,
    packed: i32,
    values: i32,
    /// Levels of a page of the second version, which are never packed.
    level_bytes: i64,
}

impl PageHeader {
    fn read(from: &mut Counted<impl Read>) -> io::Result<Self> {
        let mut header = Self::default();
        let mut field = 0;
        while let Some(kind) = next_field(from, &mut field)? {
            match (field, kind) {
                (2, I32) => header.unpacked = size(from)?,
                (3, I32) => header.packed = size(from)?,
                // Headers of data pages of both versions; both have the number of values first.
                (5 | 8, STRUCT) => header.read_data(from)?,
                _ => skip(from, kind, 0)?,
            }
        }
        Ok(header)
    }

    fn read_data(&mut self, from: &mut Counted<impl Read>) -> io::Result<()> {
        let mut field = 0;
        while let Some(kind) = next_field(from, &mut field)? {
            match (field, kind) {
                (1, I32) => self.values = size(from)?,
                (5 | 6, I32) => self.level_bytes += i64::from(size(from)?),
                _ => skip(from, kind, 1)?,
            }
        }
        Ok(())
    }
}

fn size(from: &mut Counted<impl Read>) -> io::Result<i32> {
    i32::try_from(from.number()?).map_err(|_| nonsense("a size of more than 31 bits"))
}

/// The type of the next field, whose number goes to `field`; none at the end of the struct.
fn next_field(from: &mut Counted<impl Read>, field: &mut i64) -> io::Result<Option<u8>> {
    let head = from.byte()?;
    let kind = head & 0x0f;
    if kind == STOP {
        return Ok(None);
    }
    *field = match head >> 4 {
        0 => from.number()?,
        added => field.saturating_add(added.into()),
    };
    Ok(Some(kind))
}

/// Reads over a value.
fn skip(from: &mut Counted<impl Read>, kind: u8, depth: usize) -> io::Result<()> {
    if depth > DEEPEST {
        return Err(nonsense("structs nested too deeply"));
    }
    match kind {
        // Truth values are in the field's type.
        1 | 2 => Ok(()),
        3 => from.pass(1),
        4..=6 => from.varint().map(drop),
        7 => from.pass(8),
        8 => {
            let length = from.varint()?;
            from.pass(length)
        }
        9 | 10 => {
            let head = from.byte()?;
            let items = match head >> 4 {
                15 => from.varint()?,
                few => few.into(),
            };
            for _ in 0..items {
                // A truth value in a list is a byte.
                skip(from, if head & 0x0f <= 2 { 3 } else { head & 0x0f }, depth + 1)?;
            }
            Ok(())
        }
        STRUCT => {
            let mut field = 0;
            while let Some(kind) = next_field(from, &mut field)? {
                skip(from, kind, depth + 1)?;
            }
            Ok(())
        }
        _ => Err(nonsense("a field of an unknown type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn header(bytes: &[u8]) -> io::Result<PageHeader> {
        PageHeader::read(&mut Counted { from: bytes, read: 0 })
    }

    #[test]
    fn headers_of_both_versions() {
        // Type, sizes 300 and 100, then {values 7, encodings} and a checksum before it.
        let first = [0x15, 0, 0x15, 0xd8, 4, 0x15, 0xc8, 1, 0x15, 9, 0x1c, 0x15, 14, 0x15, 0, 0, 0];
        let expected = PageHeader { unpacked: 300, packed: 100, values: 7, level_bytes: 0 };
        assert_eq!(header(&first).unwrap(), expected);
        // Second version: values, nulls, rows, encoding, bytes of both levels, packed or not.
        let second = [
            0x15, 6, 0x15, 20, 0x15, 18, 0x5c, 0x15, 4, 0x15, 0, 0x15, 4, 0x15, 0, 0x15, 6, 0x15,
            8, 0x11, 0, 0,
        ];
        let expected = PageHeader { unpacked: 10, packed: 9, values: 2, level_bytes: 7 };
        assert_eq!(header(&second).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_an_error() {
        let cases: [&[u8]; 6] = [
            &[],
            &[0x15],
            &[0x25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x1f, 0],
            &[0x18, 0xff, 0xff, 3, 1, 0],
            &[0x1c; 100],
        ];
        for bytes in cases {
            assert!(header(bytes).is_err(), "{bytes:?}");
        }
    }

    /// A column of one page whose header promises `unpacked` bytes.
    fn one_page(unpacked: i64, packed: &[u8]) -> File {
        let varint = |number: i64| {
            let (mut rest, mut bytes) = ((number << 1) as u64, Vec::new());
            while rest > 0x7f {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
            bytes
        };
        let sizes = [
            [&[0x15][..], &varint(unpacked)].concat(),
            [&[0x15][..], &varint(packed.len() as i64)].concat(),
        ];
        let header = [&[0x15, 0][..], &sizes.concat(), &[0x2c, 0x15, 2, 0, 0]].concat();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[header.as_slice(), packed].concat()).unwrap();
        file
    }

    #[test]
    fn pages_hold_what_they_may_whatever_they_promise() {
        let pages = |gzip| Pages { start: 0, end: 1 << 20, values: 1, gzip, most_bytes: 4000 };
        assert_eq!(check(&one_page(4000, b"x"), &pages(false)), Ok(4000));
        assert!(check(&one_page(4001, b"x"), &pages(false)).unwrap_err().contains("4001 bytes"));
        assert!(check(&one_page(i64::from(i32::MAX), b"x"), &pages(false)).is_err());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&[0; 100_000]).unwrap();
        let packed = gzip.finish().unwrap();
        assert!(check(&one_page(10, &packed), &pages(true)).unwrap_err().contains("more"));
        assert_eq!(check(&one_page(10, &packed), &pages(false)), Ok(10));
    }
}
