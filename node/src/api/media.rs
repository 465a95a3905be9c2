//! What browsers are told that content is: by its name, or, where there is none that says it, by its first bytes.

/// First bytes that are looked at.
pub const HEAD: usize = 512;

/// The media type of a file name, for what browsers show themselves.
pub fn by_name(name: &str) -> Option<&'static str> {
    const TYPES: [(&str, &str); 22] = [
        ("html", "text/html; charset=utf-8"),
        ("htm", "text/html; charset=utf-8"),
        ("css", "text/css; charset=utf-8"),
        ("js", "text/javascript; charset=utf-8"),
        ("mjs", "text/javascript; charset=utf-8"),
        ("json", "application/json"),
        ("txt", "text/plain; charset=utf-8"),
        ("md", "text/markdown; charset=utf-8"),
        ("svg", "image/svg+xml"),
        ("png", "image/png"),
        ("jpg", "image/jpeg"),
        ("jpeg", "image/jpeg"),
        ("gif", "image/gif"),
        ("webp", "image/webp"),
        ("avif", "image/avif"),
        ("mp4", "video/mp4"),
        ("webm", "video/webm"),
        ("mp3", "audio/mpeg"),
        ("ogg", "audio/ogg"),
        ("wav", "audio/wav"),
        ("pdf", "application/pdf"),
        ("wasm", "application/wasm"),
    ];
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension
        .and_then(|extension| TYPES.iter().find(|(known, _)| *known == extension))
        .map(|(_, media)| *media)
}

/// The media type of content that starts so. Nothing is called HTML or SVG for its bytes: a page that nobody named one
/// does not run. Source of the signatures: the WHATWG's MIME Sniffing standard.
pub fn by_content(head: &[u8]) -> &'static str {
    const SIGNATURES: [(usize, &[u8], &str); 16] = [
        (0, b"\x89PNG\r\n\x1a\n", "image/png"),
        (0, b"\xff\xd8\xff", "image/jpeg"),
        (0, b"GIF87a", "image/gif"),
        (0, b"GIF89a", "image/gif"),
        (8, b"WEBPVP", "image/webp"),
        (4, b"ftypavif", "image/avif"),
        (4, b"ftypM4A", "audio/mp4"),
        (4, b"ftypqt", "video/quicktime"),
        (4, b"ftyp", "video/mp4"),
        (0, b"\x1a\x45\xdf\xa3", "video/webm"),
        (0, b"OggS\0", "audio/ogg"),
        (0, b"ID3", "audio/mpeg"),
        (8, b"WAVE", "audio/wav"),
        (0, b"%PDF-", "application/pdf"),
        (0, b"PK\x03\x04", "application/zip"),
        (0, b"\x1f\x8b\x08", "application/gzip"),
    ];
    let matches =
        |at: usize, signature: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(signature));
    let known = SIGNATURES.iter().find(|(at, signature, _)| matches(*at, signature));
    known.map_or_else(
        || if is_text(head) { "text/plain; charset=utf-8" } else { BINARY },
        |(_, _, media)| media,
    )
}

/// What is none of the others.
const BINARY: &str = "application/octet-stream";

/// Whether it is UTF-8 without control characters that no text has. Its last character may be cut.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty()
        && text.chars().all(|c| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\x0c' | '\x1b'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_first_bytes_tell_what_it_is() {
        assert_eq!(by_name("a/b.PNG"), Some("image/png"));
        assert_eq!((by_name("a"), by_name("a.b/c"), by_name("x.unheard")), (None, None, None));
        for (head, media) in [
            (&b"\x89PNG\r\n\x1a\n\0\0"[..], "image/png"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
            (b"RIFF\x10\0\0\0WAVEfmt ", "audio/wav"),
            (b"\0\0\0\x20ftypisom", "video/mp4"),
            (b"<!doctype html><script>", "text/plain; charset=utf-8"),
            ("größe".as_bytes(), "text/plain; charset=utf-8"),
            (&"größe".as_bytes()[..3], "text/plain; charset=utf-8"),
            (b"a\0b", BINARY),
            (b"\xff\xfe\xfd", BINARY),
            (b"", BINARY),
        ] {
            assert_eq!(by_content(head), media, "{head:?}");
        }
    }
}
