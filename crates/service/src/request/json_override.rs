//! Members of a JSON body that override the method: Laravel, Slim and `koa-override` obey `_method`
//! in a JSON object as they do in a form.
//!
//! Only members of the outermost object count. The text is read as it comes. Between chunks
//! [`MemberScan`] keeps at most [`MAX_NAME`] and [`MAX_VALUE`] bytes.

use super::{form_error::FormError, query::overrides_method};

/// Longest name that is read, in bytes as written. The longest name that overrides has 22
/// characters, of which each may be an escape of 6 bytes.
const MAX_NAME: usize = 256;
/// Longest value that is read, in bytes as written. No method is longer, even in escapes.
const MAX_VALUE: usize = 128;

/// Looks for members of the outermost object that override the method.
#[derive(Debug, Default)]
pub(super) struct MemberScan {
    /// The first byte of a value has come.
    begun: bool,
    /// It begins no JSON, as compressed text does: nobody finds a member in it.
    is_other: bool,
    /// Objects and arrays that are open.
    depth: u32,
    /// The outermost value is an object.
    is_object: bool,
    /// The next string of the outermost object is a name.
    expects_name: bool,
    /// The next value is the method that is asked for.
    expects_method: bool,
    string: Option<JsonString>,
}

/// A string whose end has not come.
#[derive(Debug)]
struct JsonString {
    role: Role,
    /// The last byte was a `\`.
    escaped: bool,
    /// As written, as far as it is read.
    raw: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Of a member of the outermost object.
    Name,
    /// The method that is asked for.
    Method,
    Other,
}

impl MemberScan {
    /// Takes the next bytes. `overridden` gets each method that is asked for.
    pub(super) fn push(
        &mut self,
        mut data: &[u8],
        mut overridden: impl FnMut(&str) -> Result<(), FormError>,
    ) -> Result<(), FormError> {
        while !data.is_empty() && !self.is_other {
            data = match self.string.take() {
                Some(string) => self.read_string(string, data, &mut overridden)?,
                None => self.read_structure(data, &mut overridden)?,
            };
        }
        Ok(())
    }

    /// The text has ended.
    pub(super) fn finish(&mut self) -> Result<(), FormError> {
        if std::mem::take(&mut self.expects_method) { Err(FormError::MethodOverrideForm) } else { Ok(()) }
    }

    /// Whether the text has begun with this byte: white space and a byte order mark may stand
    /// before it.
    fn begin(&mut self, byte: u8) -> bool {
        self.begun = !matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c | 0xef | 0xbb | 0xbf);
        // A value, or what only lax parsers read: comments, other quotes and UTF-16.
        let may_begin = matches!(byte, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
            || matches!(byte, b'/' | b'#' | b'\'' | b'`' | b'\\' | 0 | 0xfe | 0xff);
        self.is_other = self.begun && !may_begin;
        self.begun
    }

    /// Reads up to the first byte of a string; gives what follows.
    fn read_structure<'a>(
        &mut self,
        data: &'a [u8],
        overridden: &mut impl FnMut(&str) -> Result<(), FormError>,
    ) -> Result<&'a [u8], FormError> {
        for (at, byte) in data.iter().enumerate() {
            if !self.begun && !self.begin(*byte) {
                continue;
            }
            if self.is_other {
                return Ok(b"");
            }
            let is_member = self.depth == 1 && self.is_object;
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b':' => continue,
                b'"' => {
                    let role = match (std::mem::take(&mut self.expects_method), is_member && self.expects_name) {
                        (true, _) => Role::Method,
                        (false, true) => Role::Name,
                        (false, false) => Role::Other,
                    };
                    self.expects_name = false;
                    self.string = Some(JsonString { role, escaped: false, raw: Vec::new() });
                    return Ok(data.get(at + 1..).unwrap_or_default());
                }
                // Comments, other quotes and UTF-16: some servers read them, and no two alike.
                b'/' | b'#' | b'\'' | b'`' | b'\\' | 0 => return Err(FormError::NotStrictJson),
                _ => {}
            }
            if std::mem::take(&mut self.expects_method) {
                overridden("")?; // a value that is no string
            }
            match byte {
                b'{' | b'[' => {
                    if self.depth == 0 {
                        self.is_object = *byte == b'{';
                        self.expects_name = self.is_object;
                    }
                    self.depth = self.depth.saturating_add(1);
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b',' => self.expects_name |= is_member,
                _ => {}
            }
        }
        Ok(b"")
    }

    /// Reads up to the end of a string; gives what follows.
    fn read_string<'a>(
        &mut self,
        mut string: JsonString,
        data: &'a [u8],
        overridden: &mut impl FnMut(&str) -> Result<(), FormError>,
    ) -> Result<&'a [u8], FormError> {
        let mut at = 0;
        let end = loop {
            let rest = data.get(at..).unwrap_or_default();
            if !rest.is_empty() && std::mem::take(&mut string.escaped) {
                at += 1;
                continue;
            }
            match memchr::memchr2(b'"', b'\\', rest) {
                Some(found) if rest.get(found) == Some(&b'"') => break Some(at + found),
                Some(found) => (string.escaped, at) = (true, at + found + 1),
                None => break None,
            }
        };
        let most = match string.role {
            Role::Name => MAX_NAME,
            Role::Method => MAX_VALUE,
            Role::Other => 0,
        };
        let part = data.get(..end.unwrap_or(data.len())).unwrap_or_default();
        let room = most.saturating_sub(string.raw.len());
        string.raw.extend_from_slice(part.get(..room).unwrap_or(part));
        let Some(end) = end else {
            self.string = Some(string);
            return Ok(b"");
        };
        match string.role {
            Role::Name => self.expects_method = overrides(&unescaped(&string.raw)),
            Role::Method => overridden(&unescaped(&string.raw))?,
            Role::Other => {}
        }
        Ok(data.get(end + 1..).unwrap_or_default())
    }
}

/// Whether a member of this name overrides the method. Names such as `http_method` say something of
/// a resource in JSON, and no framework is known that obeys them.
fn overrides(name: &str) -> bool {
    let begins = |c: char| matches!(c, '_' | 'x' | 'X');
    name.trim_start_matches(|c: char| !c.is_ascii_graphic()).starts_with(begins) && overrides_method(name, "")
}

/// A string without its escapes. One that is cut within an escape ends before it.
fn unescaped(raw: &[u8]) -> String {
    let parse = |raw: &[u8]| serde_json::from_slice(&[b"\"", raw, b"\""].concat()).ok();
    let whole_escapes = || raw.get(..memchr::memrchr(b'\\', raw)?);
    parse(raw).or_else(|| parse(whole_escapes()?)).unwrap_or_else(|| String::from_utf8_lossy(raw).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{
        super::form_override::{FormKind, FormScan},
        *,
    };

    fn scan(may_override: bool, pieces: &[&[u8]]) -> Result<Option<String>, FormError> {
        let mut scan = FormScan::new(FormKind::Json, may_override);
        pieces.iter().try_for_each(|piece| scan.push(piece))?;
        scan.finish()?;
        Ok(scan.method().map(ToString::to_string))
    }

    fn at_every_split(may_override: bool, body: &str) -> Result<Option<String>, FormError> {
        let whole = scan(may_override, &[body.as_bytes()]);
        for cut in 0..body.len() {
            let (a, b) = body.as_bytes().split_at(cut);
            assert_eq!(scan(may_override, &[a, b]), whole, "{body:?} cut at {cut}");
        }
        assert_eq!(scan(may_override, &body.as_bytes().chunks(1).collect::<Vec<_>>()), whole, "{body}");
        whole
    }

    #[test]
    fn a_member_that_overrides_is_found_in_every_spelling() {
        for body in [
            r#"{"_method":"DELETE"}"#,
            r#" { "a" : {"b":["}",1]} , "_method" : "delete" }"#,
            r#"{"\u005f\u006d\u0065\u0074\u0068\u006f\u0064":"DELETE"}"#,
            r#"{"_METHOD":"\u0044ELETE"}"#,
            r#"{"a":"\\","_method":"DELETE","b":"\""}"#,
            r#"{"_method\u0000x":"DELETE"}"#,
            r#"{"X-HTTP-Method-Override":"DELETE"}"#,
            "\u{feff}{\"_method\":\"DELETE\"}",
        ] {
            assert_eq!(at_every_split(true, body), Ok(Some("DELETE".into())), "{body}");
            assert_eq!(at_every_split(false, body), Err(FormError::MethodOverride), "{body}");
        }
    }

    #[test]
    fn other_members_override_nothing() {
        for body in [
            r#"{"a":"_method","b":{"_method":"DELETE"},"c":[{"_method":"DELETE"}]}"#,
            r#"[{"_method":"DELETE"},"_method","DELETE"]"#,
            r#"{"text":"{\"_method\":\"DELETE\"}"}"#,
            r#"{"method":"DELETE","http_method":"DELETE","_methods":"DELETE","payment_method":"x"}"#,
            r#""_method""#,
            "12",
            "\u{1f}?{\"_method\":\"DELETE\",'/",
            "a=1&_method=DELETE",
            "",
        ] {
            assert_eq!(at_every_split(false, body), Ok(None), "{body}");
        }
    }

    #[test]
    fn what_is_no_method_or_no_strict_json_is_refused() {
        for body in [
            r#"{"_method":null}"#,
            r#"{"_method":["DELETE"]}"#,
            r#"{"_method":{"a":"DELETE"}}"#,
            r#"{"_method":"a b"}"#,
            r#"{"_method":""}"#,
            r#"{"_method":"PUT","_method":"GET"}"#,
            r#"{"_method""#,
        ] {
            assert_eq!(at_every_split(true, body), Err(FormError::MethodOverrideForm), "{body}");
        }
        let long = format!("{{\"_method\":\"{}\"}}", "D".repeat(1000));
        assert_eq!(at_every_split(true, &long), Err(FormError::MethodOverrideForm));
        for body in [r#"{/*"*/"_method":"DELETE"}"#, "{'_method':'DELETE'}", "{\0\"\0", "# \"\n{}"] {
            assert_eq!(at_every_split(true, body), Err(FormError::NotStrictJson), "{body}");
        }
    }

    #[test]
    fn what_is_kept_of_a_string_is_bounded() {
        let mut scan = MemberScan::default();
        scan.push(b"{\"_", |_| Ok(())).unwrap();
        for _ in 0..100 {
            scan.push(&[b'x'; 1000], |_| Ok(())).unwrap();
            assert!(scan.string.as_ref().unwrap().raw.len() <= MAX_NAME);
        }
    }
}
