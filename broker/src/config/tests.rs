use super::*;

const GOOD: &str = r#"
    data_dir = "data"
    [https]
    url = "https://access.example.com"
    [keys]
    passphrase_file = "passphrase"
    [policies]
    dir = "policies"
    [login]
    issuer = "https://idp.example.com"
    client_id = "daypass"
"#;

fn parse(text: &str) -> Result<Config, ParseError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("passphrase"), "correct horse\n").unwrap();
    Config::parse(text, dir.path(), |_| None)
}

#[test]
fn a_short_file_is_completed_with_defaults_beside_it() {
    let config = parse(GOOD).unwrap();
    assert!(config.database_url.starts_with("sqlite:") && config.database_url.contains("data/daypass.db"));
    assert_eq!(config.ssh.host, "access.example.com");
    assert_eq!(config.key_passphrase.as_str(), "correct horse");
}

#[test]
fn five_mistakes_are_reported_at_once_with_key_and_reason() {
    let text = GOOD
        .replace("https://access.example.com", "http://access.example.com/path")
        .replace("[policies]", "[policies]\ncolour = 3")
        .replace("dir = \"policies\"", "dir = 7")
        .replace("passphrase_file = \"passphrase\"", "passphrase_file = \"nowhere\"")
        + "[log]\nformat = \"xml\"\n[https2]\nlisten = \"x\"\n";
    let Err(ParseError::Mistakes(mistakes)) = parse(&text) else { panic!("accepted") };
    let keys: Vec<_> = mistakes.0.iter().map(|mistake| mistake.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "https.url",
            "https2.listen",
            "keys.passphrase_file",
            "log.format",
            "policies.colour",
            "policies.dir"
        ]
    );
    assert!(mistakes.to_string().starts_with("6 mistakes to mend\n"));
}

#[test]
fn a_public_address_without_a_certificate_is_refused() {
    let text = GOOD.replace("[https]", "[https]\nlisten = \"0.0.0.0:443\"");
    let Err(ParseError::Mistakes(mistakes)) = parse(&text) else { panic!("accepted") };
    assert_eq!(mistakes.0[0].key, "https.certificate");
}

#[test]
fn the_configuration_does_not_print_its_secrets() {
    let text = GOOD.replace("[keys]", "[database]\nurl = \"postgres://u:hunter2@db/x\"\n[keys]");
    let shown = format!("{:?}", parse(&text).unwrap());
    assert!(!shown.contains("hunter2") && !shown.contains("correct horse"));
}
