//! Server-sent events: bytes in, the payloads of `data:` lines out. Bounded; no I/O.
//!
//! Of the standard's fields only `data` counts, and `error`, which llama.cpp once used. Lines end
//! in LF or CRLF (a lone CR is no line end: no server of the field uses it).

use bytes::{Buf, Bytes, BytesMut};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Its data; several `data:` lines are joined by a newline.
    Data(Bytes),
    /// The server's word that all is said.
    Done,
    /// The data of an `error:` line.
    Error(Bytes),
}

/// An event larger than the decoder takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Puts events together, whatever pieces their bytes come in.
#[derive(Debug)]
pub(super) struct Decoder {
    max: usize,
    buffer: BytesMut,
    /// Bytes of the buffer already searched for a line end.
    searched: usize,
    /// The event so far.
    data: Option<Data>,
    started: bool,
}

/// An event so far: almost always one line.
#[derive(Debug)]
enum Data {
    One(Bytes),
    Many(BytesMut),
    Error(Bytes),
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::One(line) | Self::Error(line) => line.len(),
            Self::Many(lines) => lines.len(),
        }
    }
}

impl Decoder {
    /// A decoder of events of at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            buffer: BytesMut::new(),
            searched: 0,
            data: None,
            started: false,
        }
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Event>, TooLarge> {
        while let Some(line) = self.line() {
            if let Some(event) = self.read(line)? {
                return Ok(Some(event));
            }
        }
        let held = self.data.as_ref().map_or(0, Data::len);
        if self.buffer.len() + held > self.max {
            return Err(TooLarge);
        }
        Ok(None)
    }

    /// The event the stream ended in. Only the last word may lack its blank line: anything else
    /// may lack more.
    pub(super) fn finish(&mut self) -> Option<Event> {
        let rest = self.buffer.split().freeze();
        let last = match self.data.take() {
            Some(Data::One(line)) if rest.is_empty() => line,
            None => value_of(&rest, b"data")?,
            Some(_) => return None,
        };
        (last.trim_ascii() == b"[DONE]").then_some(Event::Done)
    }

    fn line(&mut self) -> Option<Bytes> {
        let fresh = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(at) = fresh.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let mut line = self.buffer.split_to(self.searched + at).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        if line.ends_with(b"\r") {
            line.truncate(line.len() - 1);
        }
        Some(line)
    }

    fn read(&mut self, mut line: Bytes) -> Result<Option<Event>, TooLarge> {
        if !self.started {
            self.started = true;
            if line.starts_with(b"\xef\xbb\xbf") {
                line.advance(3);
            }
        }
        if line.is_empty() {
            return Ok(self.data.take().map(whole));
        }
        if let Some(value) = value_of(&line, b"data") {
            self.data = Some(join(self.data.take(), value));
        } else if let Some(value) = value_of(&line, b"error") {
            self.data = Some(Data::Error(value));
        }
        match &self.data {
            Some(data) if data.len() > self.max => Err(TooLarge),
            _ => Ok(None),
        }
    }
}

/// The value of a line, if it is of this field; one space after the colon is not part of it.
fn value_of(line: &Bytes, field: &[u8]) -> Option<Bytes> {
    let rest = line.strip_prefix(field)?.strip_prefix(b":")?;
    Some(line.slice_ref(rest.strip_prefix(b" ").unwrap_or(rest)))
}

fn join(before: Option<Data>, line: Bytes) -> Data {
    let mut lines = match before {
        None => return Data::One(line),
        Some(error @ Data::Error(_)) => return error,
        Some(Data::One(first)) => BytesMut::from(first),
        Some(Data::Many(lines)) => lines,
    };
    lines.extend_from_slice(b"\n");
    lines.extend_from_slice(&line);
    Data::Many(lines)
}

fn whole(data: Data) -> Event {
    match data {
        Data::One(line) if line.trim_ascii() == b"[DONE]" => Event::Done,
        Data::One(line) => Event::Data(line),
        Data::Many(lines) => Event::Data(lines.freeze()),
        Data::Error(line) => Event::Error(line),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The events of a stream that comes in these pieces.
    fn decode<'a>(
        max: usize,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Event>, TooLarge> {
        let mut decoder = Decoder::new(max);
        let mut events = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(event) = decoder.next()? {
                events.push(event);
            }
        }
        events.extend(decoder.finish());
        Ok(events)
    }

    fn data(text: &'static str) -> Event {
        Event::Data(Bytes::from_static(text.as_bytes()))
    }

    const STREAM: &[u8] = b"\xef\xbb\xbf: hello\r\n\r\ndata: {\"a\":1}\r\n\r\nevent: x\nid: 7\ndata:{\"b\":2}\n\n\ndata: {\ndata: }\n\nerror: {\"code\":500}\n\ndata: [DONE]\n\n";

    #[test]
    fn data_is_taken_and_all_else_is_passed_over() {
        let expected = [
            data("{\"a\":1}"),
            data("{\"b\":2}"),
            data("{\n}"),
            Event::Error(Bytes::from_static(b"{\"code\":500}")),
            Event::Done,
        ];
        assert_eq!(decode(100, [STREAM]), Ok(expected.to_vec()));
    }

    #[test]
    fn only_the_last_word_may_lack_its_blank_line() {
        for text in ["data: [DONE]", "data: [DONE]\n", "data: [DONE]\r\n"] {
            assert_eq!(decode(100, [text.as_bytes()]), Ok(vec![Event::Done]));
        }
        for text in [
            "data: {}",
            "data: {}\n",
            "data: [DON",
            "data: {}\ndata: [DONE]",
        ] {
            assert_eq!(decode(100, [text.as_bytes()]), Ok(vec![]), "{text}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let line = [b'x'; 40];
        assert_eq!(decode(100, [&line[..], &line, &line]), Err(TooLarge));
        let line = b"data: 0123456789012345678901234567890123456789\n";
        assert_eq!(decode(100, [&line[..], line, line]), Err(TooLarge));
        let many = b"data: 0123456789012345678901234567890123456789\n\n".repeat(9);
        assert_eq!(decode(100, [&many[..]]).map(|events| events.len()), Ok(9));
    }

    proptest! {
        #[test]
        fn where_the_pieces_break_does_not_matter(cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([STREAM.len()]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let pieces = starts.zip(ends).map(|(from, to)| &STREAM[from..to]);
            prop_assert_eq!(decode(100, pieces), decode(100, [STREAM]));
        }

        #[test]
        fn any_bytes_in_any_pieces_decode_alike(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), Just(b'd'), any::<u8>()], 0..80), size in 1_usize..9) {
            let mut text = b"data: ".to_vec();
            text.extend(&bytes);
            let pieces = text.chunks(size);
            prop_assert_eq!(decode(1000, pieces), decode(1000, [&text[..]]));
        }
    }
}
