//! The files of the page, which are in the program: no path of a request reaches the file system.

use std::sync::LazyLock;

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use tinygpt_trainer::digest::Digest;

use crate::commands::serve::http::{error::ApiError, name::Name};

/// A file of the page.
struct PageFile {
    name: &'static str,
    content: &'static [u8],
    /// A digest of the content: what a browser names to be told whether the file is another one.
    etag: HeaderValue,
}

/// Embeds files of the folder `page` of this crate.
macro_rules! embedded {
    ($($name:literal)*) => {
        [$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/page/", $name)).as_slice())),*]
    };
}

/// All files of the folder, `index.html` first.
static FILES: LazyLock<Vec<PageFile>> = LazyLock::new(|| {
    let files = embedded! {
        "index.html"
        "api.js"
        "app.js"
        "attention.js"
        "chart.js"
        "dom.js"
        "inverse.js"
        "playground.js"
        "rules.js"
        "runs.js"
        "sampler.js"
        "state.js"
        "style.css"
        "tokens.js"
    };
    let file = |(name, content)| PageFile { name, content, etag: etag(content) };
    files.into_iter().map(file).collect()
});

/// `GET /`.
pub async fn index(headers: HeaderMap) -> Response {
    FILES[0].answer(&headers)
}

/// `GET /assets/{name}`.
pub async fn asset(Name(name): Name, headers: HeaderMap) -> Result<Response, ApiError> {
    let file = FILES.iter().find(|file| file.name == name);
    let file = file.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "the page has no such file"))?;
    Ok(file.answer(&headers))
}

impl PageFile {
    /// The file, or that the browser has it.
    fn answer(&self, asked: &HeaderMap) -> Response {
        // A browser keeps a file and asks whether it is still the one: after an update of the program all files fit together.
        let headers =
            [(header::ETAG, self.etag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
        let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let has_it =
            known.flat_map(|value| value.split(',')).any(|tag| self.etag == tag.trim().trim_start_matches("W/"));
        if has_it {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        (headers, [(header::CONTENT_TYPE, content_type(self.name))], self.content).into_response()
    }
}

/// What a browser should take a file for.
fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

fn etag(content: &[u8]) -> HeaderValue {
    let digits: String = Digest::of(content).to_string().chars().take(32).collect();
    // Digits of a digest are allowed in a header.
    HeaderValue::try_from(format!("\"{digits}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    fn get(name: &str, known: Option<&str>) -> Response {
        let file = FILES.iter().find(|file| file.name == name).unwrap();
        let mut headers = HeaderMap::new();
        headers.extend(known.map(|tag| (header::IF_NONE_MATCH, HeaderValue::from_str(tag).unwrap())));
        file.answer(&headers)
    }

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        let mut embedded: Vec<&str> = FILES.iter().map(|file| file.name).collect();
        embedded.sort_unstable();
        assert_eq!(embedded, names);
        assert_eq!(FILES[0].name, "index.html");
        for file in FILES.iter() {
            assert_eq!(file.content, std::fs::read(folder.join(file.name)).unwrap(), "{}", file.name);
        }
    }

    #[test]
    fn files_have_their_types() {
        for (name, expected) in [("index.html", "text/html"), ("app.js", "text/javascript"), ("style.css", "text/css")]
        {
            let response = get(name, None);
            assert_eq!(response.status(), 200);
            assert!(response.headers()["content-type"].to_str().unwrap().starts_with(expected), "{name}");
        }
    }

    #[test]
    fn a_browser_that_has_a_file_is_not_sent_it_again() {
        let response = get("app.js", None);
        let etag = response.headers()["etag"].to_str().unwrap().to_owned();
        for known in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}")] {
            let again = get("app.js", Some(&known));
            assert_eq!(
                (again.status(), &again.headers()["etag"]),
                (StatusCode::NOT_MODIFIED, &etag.as_str().try_into().unwrap() as &HeaderValue)
            );
        }
        assert_eq!(get("style.css", Some(&etag)).status(), 200);
    }
}
