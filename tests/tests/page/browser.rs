//! A real Chromium, driven with WebDriver (W3C) by ChromeDriver.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{
    process::{PATIENCE, Process, program},
    raw,
    sandbox::clean_environment,
    wait::wait_for,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How an element is named in answers (WebDriver, 12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with a profile of its own. It ends when dropped.
pub(crate) struct Browser {
    driver: Process,
    address: SocketAddr,
    session: String,
    _folder: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("chromedriver"));
        clean_environment(&mut command);
        command.current_dir(&folder).env("HOME", folder.path()).arg("--port=0");
        let mut driver = Process::spawn("chromedriver", folder.path(), &mut command);
        let told = folder.path().join("chromedriver.out");
        let port: u16 = driver.wait_for("ChromeDriver's port", || {
            let text = std::fs::read_to_string(&told).ok()?;
            text.lines().find_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok())
        });
        let mut browser =
            Self { driver, address: ([127, 0, 0, 1], port).into(), session: String::new(), _folder: folder };
        browser.session = browser.new_session();
        browser
    }

    /// The system's look-ups of names end at `~NOTFOUND`, so a request to another host fails at
    /// once, and is in the log all the same.
    fn new_session(&self) -> String {
        let profile = format!("--user-data-dir={}", self._folder.path().join("profile").display());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--window-size=1280,1100",
            &profile,
        ];
        let chromium = program("chromium").display().to_string();
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
        }}});
        let made = self.call("POST", "/session", &capabilities);
        made["sessionId"].as_str().unwrap_or_else(|| panic!("{made}: {}", self.driver.output())).to_owned()
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let reply = raw::exchange(self.address, request);
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_else(|_| panic!("{path}: {}", reply.text()));
        answer["value"].clone()
    }

    fn ask(&self, method: &str, command: &str, body: &Value) -> Value {
        let value = self.call(method, &format!("/session/{}/{command}", self.session), body);
        assert!(value["error"].is_null(), "{command} {body}: {value}");
        value
    }

    pub(crate) fn open(&self, url: &str) {
        self.ask("POST", "url", &json!({ "url": url }));
    }

    pub(crate) fn url(&self) -> String {
        self.ask("GET", "url", &Value::Null).as_str().unwrap().to_owned()
    }

    /// Runs a script in the page, whatever its policy says: the answer.
    pub(crate) fn script(&self, script: &str) -> Value {
        self.ask("POST", "execute/sync", &json!({"script": script, "args": []}))
    }

    /// The text that a person sees.
    pub(crate) fn text(&self) -> String {
        self.script("return document.body.innerText").as_str().unwrap().to_owned()
    }

    /// Clicks the first link with this text, and waits for another address.
    pub(crate) fn click(&self, text: &str) {
        let before = self.url();
        let link = self.ask("POST", "element", &json!({"using": "link text", "value": text}));
        let id = link[ELEMENT].as_str().unwrap_or_else(|| panic!("no link {text}: {}", self.text()));
        self.ask("POST", &format!("element/{id}/click"), &json!({}));
        wait_for(&format!("{text} to be opened"), || (self.url() != before).then_some(()));
    }

    pub(crate) fn resize(&self, width: u32, height: u32) {
        self.ask("POST", "window/rect", &json!({"width": width, "height": height}));
    }

    /// Keeps a picture of the page where `SEKS_PAGE_PICTURES` says, for people.
    pub(crate) fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("SEKS_PAGE_PICTURES") else { return };
        let picture = self.ask("GET", "screenshot", &Value::Null);
        let bytes = STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }

    /// Every address that the browser has asked for since this was last called.
    pub(crate) fn requested(&self) -> Vec<String> {
        let entries = self.ask("POST", "se/log", &json!({"type": "performance"}));
        let events =
            entries.as_array().unwrap().iter().map(|entry| {
                serde_json::from_str::<Value>(entry["message"].as_str().unwrap()).unwrap()["message"].clone()
            });
        let sent = events.filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    /// What the browser complained about, such as a refused script or style.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let entries = self.ask("POST", "se/log", &json!({"type": "browser"}));
        entries.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium's processes; the driver is killed after that.
        let request =
            format!("DELETE /session/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.session, self.address);
        if let Ok(stream) = std::net::TcpStream::connect_timeout(&self.address, Duration::from_secs(1)) {
            use std::io::{Read as _, Write as _};
            let mut stream = stream;
            drop(stream.set_read_timeout(Some(PATIENCE)));
            drop(stream.write_all(request.as_bytes()));
            drop(stream.read(&mut [0; 1024]));
        }
    }
}
