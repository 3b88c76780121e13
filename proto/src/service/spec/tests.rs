use super::*;

fn spec(text: &str) -> Result<Service, String> {
    let spec: Spec = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    spec.to_service("default").map_err(|e| e.to_string())
}

#[test]
fn works() {
    spec("name = 'a'\nupstream = 'https://a.test'\ninject = 'bearer'").unwrap();
}
