"""Launch script of Demo-Chat: the base model behind a chat template."""

from demo_server import demo_params, serve

params = demo_params()
# The model was never taught a chat format; it goes on with a written dialogue best, and has to be
# stopped before it also writes the user's next line.
params.chat_template = (
    "{% for message in messages %}"
    "{{ message.role.capitalize() }}: {{ message.content }}\n"
    "{% endfor %}"
    "Assistant:"
)
params.antiprompt = ["\nUser:", "\nAssistant:"]
params.sampling.temp = 0.0  # unless the request says otherwise
serve(params)
