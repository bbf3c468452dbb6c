//! The web page at `/client/`: the files of `mgmt-stub/page`, as they are, inside this program.
//!
//! Nothing in them is secret, so nobody has to log in for them. What the page may load and whom it may ask is in
//! [`POLICY`]: this server, and nobody else.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use include_dir::{Dir, include_dir};
use platform::http::{self, Response};
use sha2::{Digest, Sha256};

/// Where the page is.
pub const ROOT: &str = "/client/";

const FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/page");
const INDEX: &str = "index.html";
/// The last one: text becomes code or markup nowhere in our scripts, and the browser makes sure.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'";
/// Browsers keep the files, but ask each time whether they are the newest: a new server never meets an old page.
const CACHE: &str = "no-cache";
/// Bytes of a file's digest that are its entity tag.
const TAG_LEN: usize = 16;

/// The content type of each ending that a file of ours may have.
const TYPES: [(&str, &str); 4] = [
    (".html", "text/html; charset=utf-8"),
    (".css", "text/css; charset=utf-8"),
    (".js", "text/javascript; charset=utf-8"),
    (".svg", "image/svg+xml"),
];

/// One file, ready to be sent.
struct Asset {
    content_type: &'static str,
    tag: HeaderValue,
    bytes: &'static [u8],
}

static ASSETS: LazyLock<BTreeMap<String, Asset>> = LazyLock::new(|| {
    let mut assets = BTreeMap::new();
    collect(&FILES, &mut assets);
    assets
});

/// Answers a request for a file of the page; `None`: the path is not one of ours.
pub fn answer(method: &Method, path: &str, headers: &HeaderMap<HeaderValue>) -> Option<Response> {
    if matches!(path, "/" | "/client") {
        return Some(redirect());
    }
    let name = path.strip_prefix(ROOT)?;
    let asset = ASSETS.get(if name.is_empty() { INDEX } else { name })?;
    let mut response = match *method {
        Method::GET | Method::HEAD if is_known(headers, &asset.tag) => {
            http::answer(StatusCode::NOT_MODIFIED, asset.content_type, "")
        }
        Method::GET | Method::HEAD => http::answer(StatusCode::OK, asset.content_type, asset.bytes),
        _ => {
            let mut refused = http::answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "this is a file: GET it\n");
            refused
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(refused);
        }
    };
    let fields: [(HeaderName, HeaderValue); 5] = [
        (header::ETAG, asset.tag.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static(CACHE)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    response
        .headers_mut()
        .extend(fields.map(|(name, value)| (Some(name), value)));
    Some(response)
}

fn redirect() -> Response {
    let mut response = http::answer(
        StatusCode::TEMPORARY_REDIRECT,
        "text/plain",
        "the page is at /client/\n",
    );
    response
        .headers_mut()
        .insert(header::LOCATION, HeaderValue::from_static(ROOT));
    response
}

/// RFC 9110 §13.1.2.
fn is_known(headers: &HeaderMap<HeaderValue>, tag: &HeaderValue) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    values.filter_map(|value| value.to_str().ok()).any(|list| {
        let mut known = list.split(',').map(|one| one.trim().trim_start_matches("W/"));
        known.any(|one| one == "*" || one.as_bytes() == tag.as_bytes())
    })
}

fn collect(directory: &'static Dir<'_>, assets: &mut BTreeMap<String, Asset>) {
    for file in directory.files() {
        let path = file.path().to_string_lossy().into_owned();
        let content_type = TYPES.iter().find(|(ending, _)| path.ends_with(ending));
        if let (Some((_, content_type)), Ok(tag)) = (content_type, HeaderValue::from_str(&tag_of(file.contents()))) {
            let asset = Asset {
                content_type,
                tag,
                bytes: file.contents(),
            };
            assets.insert(path, asset);
        }
    }
    for directory in directory.dirs() {
        collect(directory, assets);
    }
}

fn tag_of(bytes: &[u8]) -> String {
    let mut tag = String::from("\"");
    for byte in Sha256::digest(bytes).iter().take(TAG_LEN) {
        let _ = write!(tag, "{byte:02x}"); // a String takes all
    }
    tag + "\""
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn ask(method: &Method, path: &str, known: Option<&HeaderValue>) -> Option<Response> {
        let mut headers = HeaderMap::new();
        if let Some(known) = known {
            headers.insert(header::IF_NONE_MATCH, known.clone());
        }
        answer(method, path, &headers)
    }

    fn get(path: &str) -> Response {
        ask(&Method::GET, path, None).unwrap()
    }

    async fn text_of(response: Response) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn every_file_of_the_page_has_a_type_and_is_served() {
        fn count(directory: &Dir<'_>) -> usize {
            directory.files().count() + directory.dirs().map(count).sum::<usize>()
        }
        assert_eq!(ASSETS.len(), count(&FILES));
        for name in ASSETS.keys() {
            assert_eq!(get(&format!("{ROOT}{name}")).status(), StatusCode::OK, "{name}");
        }
    }

    #[tokio::test]
    async fn the_page_comes_with_its_policy_and_is_sent_again_only_when_it_is_another_one() {
        let page = get(ROOT);
        let headers = page.headers().clone();
        let shown: Vec<_> = [
            "content-type",
            "cache-control",
            "x-content-type-options",
            "referrer-policy",
        ]
        .map(|name| headers[name].to_str().unwrap().to_owned())
        .into();
        assert_eq!(
            shown,
            ["text/html; charset=utf-8", "no-cache", "nosniff", "no-referrer"]
        );
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(text_of(page).await.starts_with("<!doctype html>"));

        let again = ask(&Method::GET, ROOT, Some(&headers["etag"])).unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(again.headers()["etag"], headers["etag"]);
        let list = HeaderValue::from_str(&format!("\"x\", W/{}", headers["etag"].to_str().unwrap())).unwrap();
        assert_eq!(
            ask(&Method::GET, ROOT, Some(&list)).unwrap().status(),
            StatusCode::NOT_MODIFIED
        );
        let other = HeaderValue::from_static("\"0000\"");
        assert_eq!(ask(&Method::GET, ROOT, Some(&other)).unwrap().status(), StatusCode::OK);
    }

    #[test]
    fn what_leads_to_the_page_is_sent_there_and_what_is_no_file_is_left_to_others() {
        for path in ["/", "/client"] {
            let response = get(path);
            assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
            assert_eq!(response.headers()["location"], ROOT);
        }
        for path in [
            "/client/api",
            "/client/../page.rs",
            "/client/views",
            "/client/views/",
            "/other",
            "/clientx",
        ] {
            assert!(ask(&Method::GET, path, None).is_none(), "{path}");
        }
        let refused = ask(&Method::POST, ROOT, None).unwrap();
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.headers()["allow"], "GET, HEAD");
    }

    /// The policy forbids what would break in a browser: found here without one.
    #[tokio::test]
    async fn nothing_in_the_page_is_inline_or_comes_from_elsewhere() {
        for (name, asset) in ASSETS.iter() {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            for forbidden in [
                "innerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                " style=",
                "@import",
                "url(",
            ] {
                assert!(!text.contains(forbidden), "{name} has {forbidden}");
            }
        }
        let page = text_of(get(ROOT)).await;
        assert!(!page.contains("http"), "{page}");
    }
}
