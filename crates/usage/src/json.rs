//! A scanner of JSON: it reports numbers, short texts and their paths, and builds nothing.
//!
//! It is tolerant: what is no JSON between values is skipped, such as the field names of
//! server-sent events. A provider's answer is not validated here.

/// Levels of a path that are told apart. Usage is never deeper.
const DEPTH: usize = 6;
/// Longest key or text that is reported, in bytes.
const TEXT: usize = 128;

/// A value that was seen.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    /// The keys above it, outermost first: at most [`DEPTH`] of them. Arrays have none.
    pub(crate) path: &'a [Key],
    /// What it is.
    pub(crate) value: Value<'a>,
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A number without a sign. One with a fraction or an exponent is rounded up.
    Number(u64),
    /// An object or array begins, as the value of a key.
    Opened,
    /// A text of at most [`TEXT`] bytes, its escapes not undone.
    Text(&'a [u8]),
    /// A part of a longer text, in order. The last part is shorter than [`TEXT`], and may be empty.
    Part(&'a [u8]),
}

/// A key of an object. Long keys are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    bytes: [u8; 40],
    length: u8,
}

impl Key {
    const NONE: Self = Self { bytes: [0; 40], length: 0 };

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or_default()
    }

    fn of(text: &[u8]) -> Self {
        let mut key = Self::NONE;
        let length = text.len().min(key.bytes.len());
        if let (Some(to), Some(from)) = (key.bytes.get_mut(..length), text.get(..length)) {
            to.copy_from_slice(from);
        }
        key.length = u8::try_from(length).unwrap_or(0);
        key
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between tokens.
    Between,
    /// In a string; `escaped`: behind a backslash.
    String { escaped: bool },
    /// In a number.
    Number,
    /// In a number with a fraction or an exponent: its text is kept.
    Decimal,
    /// In a number that is not reported: it has a sign.
    Negative,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Json {
    /// A line that ends inside a string ends the value: events have one value a line.
    lines: bool,
    state: State,
    /// The keys of the objects that are open.
    path: [Key; DEPTH],
    /// Objects and arrays that are open. Those deeper than 64 are only counted.
    depth: usize,
    /// A bit for each of the first 64: it is an object.
    objects: u64,
    text: [u8; TEXT],
    length: usize,
    /// Parts of the text were reported.
    in_parts: bool,
    number: u64,
    /// The string that has ended is a key if a colon follows.
    is_key: bool,
}

impl Json {
    pub(crate) fn new(lines: bool) -> Self {
        Self {
            lines,
            state: State::Between,
            path: [Key::NONE; DEPTH],
            depth: 0,
            objects: 0,
            text: [0; TEXT],
            length: 0,
            in_parts: false,
            number: 0,
            is_key: false,
        }
    }

    /// The next bytes.
    pub(crate) fn read(&mut self, bytes: &[u8], seen: &mut impl FnMut(Seen<'_>)) {
        for &byte in bytes {
            self.byte(byte, seen);
        }
    }

    fn byte(&mut self, byte: u8, seen: &mut impl FnMut(Seen<'_>)) {
        match self.state {
            State::String { escaped } => self.string_byte(byte, escaped, seen),
            State::Number if byte.is_ascii_digit() => {
                let digit = u64::from(byte - b'0');
                self.number = self.number.saturating_mul(10).saturating_add(digit);
                self.keep(byte);
            }
            State::Number | State::Decimal if is_of_decimal(byte) => {
                self.state = State::Decimal;
                self.keep(byte);
            }
            State::Negative if is_of_decimal(byte) => {}
            State::Number | State::Decimal | State::Negative => self.number_ends(byte, seen),
            State::Between => self.between(byte, seen),
        }
    }

    fn string_byte(&mut self, byte: u8, escaped: bool, seen: &mut impl FnMut(Seen<'_>)) {
        match byte {
            b'\n' if self.lines => self.restart(),
            b'"' if !escaped => {
                self.state = State::Between;
                self.is_key = true;
                // A value, unless a colon follows; reported when the next byte says so.
            }
            _ => {
                self.state = State::String { escaped: byte == b'\\' && !escaped };
                if self.length == TEXT {
                    self.in_parts = true;
                    self.report(seen, |this| Value::Part(&this.text));
                    self.length = 0;
                }
                if let Some(place) = self.text.get_mut(self.length) {
                    *place = byte;
                    self.length += 1;
                }
            }
        }
    }

    /// The byte behind a number.
    fn number_ends(&mut self, byte: u8, seen: &mut impl FnMut(Seen<'_>)) {
        match std::mem::replace(&mut self.state, State::Between) {
            State::Number => self.report(seen, |this| Value::Number(this.number)),
            State::Decimal => self.report(seen, |this| Value::Number(this.rounded_up())),
            _ => {}
        }
        self.between(byte, seen);
    }

    /// The number whose text was kept. Cohere writes counts as `12.0`.
    fn rounded_up(&self) -> u64 {
        let text = std::str::from_utf8(self.text.get(..self.length).unwrap_or_default()).unwrap_or_default();
        // A float becomes the nearest u64: 2^64 - 1 at most.
        text.parse::<f64>().map_or(self.number, |number| number.ceil() as u64)
    }

    /// Keeps a byte of a number. What is beyond [`TEXT`] bytes are digits of a fraction, or no
    /// count.
    fn keep(&mut self, byte: u8) {
        if let Some(place) = self.text.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn between(&mut self, byte: u8, seen: &mut impl FnMut(Seen<'_>)) {
        if self.is_key && !byte.is_ascii_whitespace() {
            self.is_key = false;
            if byte == b':' && self.is_object() {
                let key = Key::of(self.text.get(..self.length).unwrap_or_default());
                let level = self.keys().saturating_sub(1);
                if let Some(place) = self.path.get_mut(level) {
                    *place = if self.in_parts { Key::NONE } else { key };
                }
            } else {
                let in_parts = self.in_parts;
                self.report(seen, |this| {
                    let text = this.text.get(..this.length).unwrap_or_default();
                    if in_parts { Value::Part(text) } else { Value::Text(text) }
                });
            }
        }
        match byte {
            b'"' => {
                self.state = State::String { escaped: false };
                (self.length, self.in_parts) = (0, false);
            }
            b'0'..=b'9' => {
                (self.state, self.number, self.length) = (State::Number, u64::from(byte - b'0'), 0);
                self.keep(byte);
            }
            b'-' => self.state = State::Negative,
            b'{' => self.open(true, seen),
            b'[' => self.open(false, seen),
            b'}' | b']' => self.close(),
            _ => {}
        }
    }

    fn open(&mut self, is_object: bool, seen: &mut impl FnMut(Seen<'_>)) {
        if self.is_object() {
            self.report(seen, |_| Value::Opened);
        }
        if let Some(bit) = u32::try_from(self.depth).ok().and_then(|depth| 1_u64.checked_shl(depth)) {
            if is_object { self.objects |= bit } else { self.objects &= !bit }
        }
        self.depth += 1;
        let level = self.keys().saturating_sub(1);
        if is_object && let Some(place) = self.path.get_mut(level) {
            *place = Key::NONE;
        }
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// Whether the innermost that is open is an object.
    fn is_object(&self) -> bool {
        self.depth > 0
            && u32::try_from(self.depth - 1)
                .ok()
                .and_then(|at| self.objects.checked_shr(at))
                .is_some_and(|bits| bits & 1 == 1)
    }

    /// Objects that are open: each has a key in the path.
    fn keys(&self) -> usize {
        let known = match u32::try_from(self.depth) {
            Ok(depth) if depth < 64 => self.objects & ((1 << depth) - 1),
            _ => self.objects,
        };
        known.count_ones() as usize
    }

    /// Reports a value with its path; of one that is deeper than [`DEPTH`], with the first keys of
    /// it.
    fn report(&self, seen: &mut impl FnMut(Seen<'_>), value: impl FnOnce(&Self) -> Value<'_>) {
        let path = self.path.get(..self.keys().min(DEPTH)).unwrap_or_default();
        seen(Seen { path, value: value(self) });
    }

    /// Bytes of a text that has not ended, beyond those that were reported.
    pub(crate) fn unreported(&self) -> u64 {
        if matches!(self.state, State::String { .. }) || self.is_key { self.length as u64 } else { 0 }
    }

    /// Whether no value is open.
    pub(crate) fn is_between_values(&self) -> bool {
        self.depth == 0 && self.state == State::Between
    }

    fn restart(&mut self) {
        *self = Self::new(self.lines);
    }
}

/// A byte of a number with a fraction or an exponent.
fn is_of_decimal(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str, lines: bool, split: usize) -> Vec<String> {
        let (mut json, mut found) = (Json::new(lines), Vec::new());
        let mut seen = |seen: Seen<'_>| {
            let path: Vec<_> =
                seen.path.iter().map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()).collect();
            let value = match seen.value {
                Value::Opened => return,
                Value::Number(number) => number.to_string(),
                Value::Text(text) | Value::Part(text) => format!("'{}'", String::from_utf8_lossy(text)),
            };
            found.push(format!("{}={value}", path.join(".")));
        };
        let (first, second) = text.as_bytes().split_at(split);
        json.read(first, &mut seen);
        json.read(second, &mut seen);
        found
    }

    #[test]
    fn values_have_their_paths_whatever_the_split() {
        let text = r#"{"a":1,"b":{"c":[{"d":"x\"y"},2],"e":-3,"f":4.5},"g":"{\"a\":9}","h":null,"i":67,"j":12.0,"k":0.2,"l":1e3}"#;
        let expected =
            ["a=1", r#"b.c.d='x\"y'"#, "b.c=2", "b.f=5", r#"g='{\"a\":9}'"#, "i=67", "j=12", "k=1", "l=1000"];
        for split in 0..=text.len() {
            assert_eq!(scan(text, false, split), expected, "split at {split}");
        }
    }

    #[test]
    fn events_are_scanned_for_their_data_and_a_broken_line_ends_its_value() {
        let text = "event: x\ndata: {\"a\": 1}\n\ndata: {\"b\": \"bro\ndata: {\"c\": 2}\n\ndata: [DONE]\n\n";
        for split in 0..=text.len() {
            assert_eq!(scan(text, true, split), ["a=1", "c=2"]);
        }
    }

    #[test]
    fn nothing_deep_or_long_is_kept() {
        let deep = format!("{}1{}", "{\"k\":".repeat(500), "}".repeat(500));
        assert_eq!(scan(&deep, false, 7).last().unwrap(), "k.k.k.k.k.k=1", "a path is cut");
        let after = format!("{}{{\"a\":5}}", "[".repeat(500) + &"]".repeat(500));
        assert_eq!(scan(&after, false, 9), ["a=5"]);
        let long = format!("{{\"{}\":1,\"a\":2}}", "k".repeat(1000));
        assert_eq!(scan(&long, false, 3).last().unwrap(), "a=2");
    }
}
