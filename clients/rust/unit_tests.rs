// Appended to pg_harness.rs by tests/runners/test_rust.py: what users copy has no tests of its own.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read() {
        let text = r#" {"id": 2, "env": {"A": "x \"y\" \\ \u00e9 \ud83d\ude00\n", "B": ""}, "none": null, "list": [true, -1.5e2, []]} "#;
        let read = Json::parse(text).unwrap();
        assert_eq!(read.member("id"), Some(&Json::Number(2.0)));
        assert_eq!(
            read.member("env").unwrap().member("A"),
            Some(&Json::Text("x \"y\" \\ é 😀\n".to_string()))
        );
        assert_eq!(read.member("none"), Some(&Json::Null));
        let list = vec![Json::Bool(true), Json::Number(-150.0), Json::Array(vec![])];
        assert_eq!(read.member("list"), Some(&Json::Array(list)));
    }

    #[test]
    fn what_is_no_json_is_none() {
        for text in [
            "",
            "{",
            "{\"a\"",
            "{\"a\": }",
            "[1",
            "[1 2]",
            "\"\\ud83d\"",
            "\"a",
            "x",
            "1 2",
            &"[".repeat(100_000),
        ] {
            assert_eq!(Json::parse(text), None, "{text:.20}");
        }
    }

    #[test]
    fn paths_are_decoded() {
        assert_eq!(decoded("/run/a%20b/%"), "/run/a b/%");
    }
}
