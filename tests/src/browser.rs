//! A headless Chromium, driven by the WebDriver protocol (W3C).

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// A browser with one page. It ends when this is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts it, with a window of so many pixels.
    ///
    /// # Errors
    /// When chromedriver or Chromium is missing or does not start.
    pub fn start(width: u32, height: u32) -> io::Result<Self> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                io::Error::other(format!(
                    "expected chromedriver (qemu-scripts/setup), found: {error}"
                ))
            })?;
        let port = match port(&mut driver) {
            Ok(port) => port,
            Err(error) => {
                let _ = driver.kill();
                let _ = driver.wait();
                return Err(error);
            }
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(60)))
            .http_status_as_error(false)
            .build();
        let mut browser = Self {
            driver,
            agent: config.into(),
            session: format!("http://127.0.0.1:{port}/session"),
            _profile: tempfile::tempdir()?,
        };
        let profile = browser._profile.path().display().to_string();
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-quic".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            "--disable-dev-shm-usage".into(),
            "--force-color-profile=srgb".into(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={profile}"),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let answer = browser.post("", &wanted)?;
        let id = answer["sessionId"].as_str().ok_or_else(|| io::Error::other("no session"))?;
        browser.session = format!("{}/{id}", browser.session);
        Ok(browser)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// What the browser answers.
    pub fn open(&self, path: &Path) -> io::Result<()> {
        self.post("/url", &json!({"url": format!("file://{}", path.display())}))?;
        Ok(())
    }

    /// What this script returns in the page.
    ///
    /// # Errors
    /// What the browser answers.
    pub fn run(&self, script: &str) -> io::Result<Value> {
        self.post("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Clicks on the first element that the CSS selector finds.
    ///
    /// # Errors
    /// When there is none, or it cannot be clicked.
    pub fn click(&self, selector: &str) -> io::Result<()> {
        let found = self.post("/element", &json!({"using": "css selector", "value": selector}))?;
        let id = found.as_object().and_then(|it| it.values().next()?.as_str());
        let id = id.ok_or_else(|| io::Error::other(format!("no {selector}")))?;
        self.post(&format!("/element/{id}/click"), &json!({}))?;
        Ok(())
    }

    /// The messages of the page's console, and all that it asked a network for.
    ///
    /// # Errors
    /// What the browser answers.
    pub fn complaints(&self) -> io::Result<Vec<String>> {
        let mut complaints = Vec::new();
        for entry in
            self.post("/se/log", &json!({"type": "browser"}))?.as_array().into_iter().flatten()
        {
            complaints.push(entry["message"].to_string());
        }
        let log = self.post("/se/log", &json!({"type": "performance"}))?;
        for entry in log.as_array().into_iter().flatten() {
            let message: Value =
                serde_json::from_str(entry["message"].as_str().unwrap_or_default())?;
            let message = &message["message"];
            let url = message["params"]["request"]["url"].as_str().unwrap_or_default();
            // The browser's own first page asks for things, too.
            let is_the_pages =
                message["params"]["documentURL"].as_str().is_some_and(|it| it.starts_with("file:"));
            let is_asked = is_the_pages && message["method"] == "Network.requestWillBeSent";
            if is_asked && !url.starts_with("file:") && !url.starts_with("data:") {
                complaints.push(format!("asked for {url}"));
            }
        }
        Ok(complaints)
    }

    /// A picture of the window, as PNG.
    ///
    /// # Errors
    /// What the browser answers.
    pub fn screenshot(&self) -> io::Result<Vec<u8>> {
        let mut answer = self
            .agent
            .get(format!("{}/screenshot", self.session))
            .call()
            .map_err(io::Error::other)?;
        let answer: Value =
            answer.body_mut().with_config().limit(1 << 26).read_json().map_err(io::Error::other)?;
        let text = answer["value"].as_str().unwrap_or_default();
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text)
            .map_err(io::Error::other)
    }

    fn post(&self, path: &str, body: &Value) -> io::Result<Value> {
        let request = self.agent.post(format!("{}{path}", self.session));
        let mut answer = request.send_json(body).map_err(io::Error::other)?;
        let answer: Value =
            answer.body_mut().with_config().limit(1 << 26).read_json().map_err(io::Error::other)?;
        let value = &answer["value"];
        match value.get("error") {
            Some(error) => Err(io::Error::other(format!("{path}: {error}: {}", value["message"]))),
            None => Ok(value.clone()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser with the session.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The port that the driver says it listens at.
fn port(driver: &mut Child) -> io::Result<u16> {
    let output = driver.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next().transpose()? {
        if let Some((_, port)) = line.split_once("successfully on port ") {
            // It goes on talking, to nobody.
            std::thread::spawn(move || lines.for_each(drop));
            return port.trim_end_matches('.').parse().map_err(io::Error::other);
        }
    }
    Err(io::Error::other("chromedriver ended before it listened"))
}

/// Writes `bytes` to the file that the environment variable names, if it does: how pictures in documents are made.
///
/// # Errors
/// What the file system answers.
pub fn keep_picture(variable: &str, bytes: &[u8]) -> io::Result<()> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(()) };
    io::Write::write_all(&mut File::create(path)?, bytes)
}
