//! The chat template of a tokenizer: how messages become a prompt.

use std::path::Path;

use minijinja::{Environment, Error, ErrorKind, syntax::SyntaxConfig, value::Serde};
use serde_json::{Value, json};
use tinygpt_model::{Tokenizer, TokenizerError, gguf::GgufFile};

/// How much a template may do, in steps of the template engine.
const FUEL: u64 = 10_000_000;
/// The file of a folder whose key `chat_template` has the template, and whose tokens it names.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The file of newer folders that is the template.
const TEMPLATE: &str = "chat_template.jinja";

/// A template with the special tokens that it may name.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The template of a model, if it has one: that of its folder, or of its GGUF file, whose tokenizer this is. One that does not
    /// compile here is told of and left out: all but chats can be served without it.
    pub fn of_model(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Option<Self>> {
        let template = if path.is_file() { Self::of_gguf(path, tokenizer)? } else { Self::of_folder(path)? };
        Ok(template.filter(|template| {
            let compiled = template.compiles();
            if let Err(error) = &compiled {
                notice!("the chat template of {} is not understood, so chats are refused: {error}", path.display());
            }
            compiled.is_ok()
        }))
    }

    fn of_gguf(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Option<Self>> {
        let Some(source) = GgufFile::open(path)?.chat_template()? else { return Ok(None) };
        // The file names them by their numbers.
        let token = |id: Option<u32>| {
            Ok::<_, TokenizerError>(id.map(|id| tokenizer.token_text(id)).transpose()?.unwrap_or_default())
        };
        let (bos_token, eos_token) = (token(tokenizer.begin_of_text())?, token(tokenizer.end_of_text())?);
        Ok(Some(Self { source, bos_token, eos_token }))
    }

    fn of_folder(folder: &Path) -> anyhow::Result<Option<Self>> {
        let read = |name: &str| {
            let path = folder.join(name);
            let is_file = path.is_file();
            is_file.then(|| std::fs::read_to_string(&path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display())))
        };
        let config: Value = match read(TOKENIZER_CONFIG).transpose()? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|e| anyhow::anyhow!("{} is not JSON: {e}", folder.join(TOKENIZER_CONFIG).display()))?,
            None => Value::Null,
        };
        let source = match read(TEMPLATE).transpose()? {
            Some(source) => Some(source),
            None => in_config(&config["chat_template"]),
        };
        let Some(source) = source else { return Ok(None) };
        let token = |key: &str| {
            let token = match &config[key] {
                // An added token is an object around its text.
                Value::Object(token) => token.get("content"),
                token => Some(token),
            };
            // One that there is not adds nothing to a text.
            token.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Ok(Some(Self { source, bos_token: token("bos_token"), eos_token: token("eos_token") }))
    }

    fn compiles(&self) -> Result<(), Error> {
        environment()?.template_from_str(&self.source).map(drop)
    }

    /// The prompt of the answer to some messages, or what the template, or its language, says of them.
    pub fn render(&self, messages: &[Value]) -> Result<String, String> {
        if messages.is_empty() {
            return Err("there must be one at least".into());
        }
        let messages = messages.iter().map(checked).collect::<Result<Vec<_>, _>>()?;
        let environment = environment().map_err(|error| error.to_string())?;
        let context = json!({
            "messages": messages,
            "add_generation_prompt": true,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        });
        let rendered = environment.render_str(&self.source, Serde(&context));
        rendered.map_err(|error| format!("the chat template refuses them: {error}"))
    }
}

/// What renders templates, as transformers does.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    Ok(environment)
}

/// The template, or of several the one named `default`.
fn in_config(templates: &Value) -> Option<String> {
    match templates {
        Value::String(source) => Some(source.clone()),
        Value::Array(several) => {
            let default = several.iter().find(|template| template["name"] == "default");
            default.and_then(|template| template["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    }
}

/// A message whose content is one text: parts that are texts are joined.
fn checked(message: &Value) -> Result<Value, String> {
    let Value::Object(keys) = message else { return Err("each must be an object with role and content".into()) };
    if !keys.get("role").is_some_and(Value::is_string) {
        return Err("each must have a role, which is a string".into());
    }
    let text_of = |part: &Value| part["text"].as_str().filter(|_| part["type"] == "text").map(str::to_owned);
    let content = match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .map(|part| text_of(part).ok_or("a part of a content must be {\"type\": \"text\", \"text\": ...}"))
            .collect::<Result<String, _>>()?,
        _ => return Err("each must have a content, which is a string or an array of texts".into()),
    };
    let mut message = message.clone();
    message["content"] = Value::String(content);
    Ok(message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    /// In the manner of ChatML, with what templates of the hub do to strings.
    const SOURCE: &str = "{%- if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif -%}
{% for message in messages %}
    {{- '<|' + message['role'].upper() + '|>' + message.content.strip() + eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|ASSISTANT|>{% endif %}";

    fn template() -> ChatTemplate {
        ChatTemplate { source: SOURCE.into(), bos_token: String::new(), eos_token: "</s>".into() }
    }

    fn of_folder(folder: &Path) -> anyhow::Result<Option<ChatTemplate>> {
        let tokenizer = Tokenizer::train_char([Ok::<_, std::convert::Infallible>("ab")]).unwrap();
        ChatTemplate::of_model(folder, &tokenizer)
    }

    #[test]
    fn messages_become_a_prompt_that_ends_where_the_answer_begins() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        let messages = [json!({ "role": "system", "content": " x " }), json!({ "role": "user", "content": parts })];
        // What jinja2 makes of it, with transformers' settings.
        let expected = "<|SYSTEM|>x</s>\n<|USER|>ab</s>\n<|ASSISTANT|>";
        assert_eq!(template().render(&messages).unwrap(), expected);
    }

    #[test]
    fn what_is_no_message_is_refused_and_so_is_what_the_template_refuses() {
        let refusal = |messages: Value| template().render(messages.as_array().unwrap()).unwrap_err();
        assert_eq!(refusal(json!([])), "there must be one at least");
        assert!(refusal(json!([1])).contains("object"));
        assert!(refusal(json!([{ "content": "a" }])).contains("role"));
        assert!(refusal(json!([{ "role": "user" }])).contains("content"));
        assert!(refusal(json!([{ "role": "tool", "content": "a" }])).contains("no tools"));
        let image = json!([{ "role": "user", "content": [{ "type": "image_url" }] }]);
        assert!(refusal(image).contains("part"));
    }

    #[test]
    fn a_template_without_an_end_runs_out_of_fuel() {
        let source = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}".into();
        let endless = ChatTemplate { source, ..template() };
        assert!(endless.render(&[json!({ "role": "user", "content": "a" })]).unwrap_err().contains("fuel"));
    }

    #[test]
    fn a_folder_has_its_template_in_either_file_or_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(of_folder(folder.path()).unwrap().is_none());
        let config = r#"{"chat_template": "of config", "eos_token": {"content": "</s>"}}"#;
        std::fs::write(folder.path().join(TOKENIZER_CONFIG), config).unwrap();
        let template = of_folder(folder.path()).unwrap().unwrap();
        assert_eq!((template.source.as_str(), template.eos_token.as_str()), ("of config", "</s>"));
        std::fs::write(folder.path().join(TEMPLATE), "of file").unwrap();
        assert_eq!(of_folder(folder.path()).unwrap().unwrap().source, "of file");
        std::fs::write(folder.path().join(TEMPLATE), "{% if %}").unwrap();
        assert!(of_folder(folder.path()).unwrap().is_none(), "one that does not compile");
        std::fs::write(folder.path().join(TOKENIZER_CONFIG), "{").unwrap();
        assert!(of_folder(folder.path()).is_err());
    }

    #[test]
    fn a_token_that_there_is_not_adds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let config =
            r#"{"chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "bos_token": null}"#;
        std::fs::write(folder.path().join(TOKENIZER_CONFIG), config).unwrap();
        let template = of_folder(folder.path()).unwrap().unwrap();
        assert_eq!(template.render(&[json!({ "role": "user", "content": "a" })]).unwrap(), "a");
    }
}
