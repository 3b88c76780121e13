"""Calls a model through a framework, which finds key and server in its variables alone: framework.py FRAMEWORK MODEL."""

import sys

framework, model = sys.argv[1:]
if framework == "litellm":
    import litellm

    messages = [{"role": "user", "content": "Say hello."}]
    print(litellm.completion(model=model, messages=messages, max_retries=0).choices[0].message.content)
else:
    if framework == "langchain-openai":
        from langchain_openai import ChatOpenAI as Chat
    elif framework == "langchain-anthropic":
        from langchain_anthropic import ChatAnthropic as Chat
    else:
        from langchain_google_genai import ChatGoogleGenerativeAI as Chat
    print(Chat(model=model, max_retries=1).invoke("Say hello.").content)
