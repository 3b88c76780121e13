import com.anthropic.client.okhttp.AnthropicOkHttpClient;
import com.anthropic.models.messages.MessageCreateParams;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import com.stripe.StripeClient;
import java.util.ArrayList;
import java.util.List;

/**
 * The official SDKs for Java, one client each: {@code Sdk openai|anthropic|stripe}.
 *
 * <p>Each prints one line of JSON a check, with what the SDK returned or raised. The environment says where and as whom; a
 * subject that is called {@code check-…} tells the stand-in what to answer.
 */
public final class Sdk {
    /** A call of an SDK: the stand-in's greeting, or the SDK's own exception. */
    interface Call {
        String call(String token, String subject, boolean retries) throws Exception;
    }

    /** A streamed call: the pieces of the greeting. */
    interface Stream {
        List<String> call(String token, String subject) throws Exception;
    }

    private static final String BASE = System.getenv("SDK_BASE_URL");

    public static void main(String[] arguments) {
        switch (arguments[0]) {
            case "openai" -> matrix(Sdk::openai, Sdk::openaiStream);
            case "anthropic" -> matrix(Sdk::anthropic, Sdk::anthropicStream);
            case "stripe" -> matrix(Sdk::stripe, null);
            default -> throw new IllegalArgumentException(arguments[0]);
        }
        System.exit(0); // the SDKs' idle threads would keep it for a minute
    }

    private static void matrix(Call call, Stream stream) {
        String token = System.getenv("SDK_TOKEN");
        check("call", () -> call.call(token, "check-call", true));
        if (stream != null) {
            check("stream", () -> String.join("|", stream.call(token, "check-stream")));
        }
        check("bad_request", () -> call.call(token, "check-bad-request", true));
        check("server_error", () -> call.call(token, "check-server-error", false));
        check("retry", () -> call.call(token, "check-retry", true));
        check("revoked", () -> call.call(System.getenv("SDK_REVOKED_TOKEN"), "check-call", true));
        check("denied", () -> call.call(System.getenv("SDK_DENIED_TOKEN"), "check-call", true));
    }

    private static void check(String name, java.util.concurrent.Callable<String> call) {
        try {
            System.out.printf("{\"check\":%s,\"text\":%s}%n", json(name), json(call.call()));
        } catch (Exception error) {
            String raised = error.getClass().getSimpleName();
            System.out.printf(
                    "{\"check\":%s,\"raised\":%s,\"message\":%s}%n",
                    json(name), json(raised), json(String.valueOf(error.getMessage())));
        }
    }

    private static String json(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            quoted.append(c < ' ' || c == '"' || c == '\\' ? String.format("\\u%04x", (int) c) : String.valueOf(c));
        }
        return quoted.append('"').toString();
    }

    private static com.openai.client.OpenAIClient openaiClient(String token, boolean retries) {
        var builder = OpenAIOkHttpClient.builder().apiKey(token).baseUrl(BASE);
        return (retries ? builder : builder.maxRetries(0)).build();
    }

    private static ChatCompletionCreateParams openaiQuestion(String model) {
        return ChatCompletionCreateParams.builder().model(model).addUserMessage("Hello?").build();
    }

    private static String openai(String token, String model, boolean retries) {
        var answer = openaiClient(token, retries).chat().completions().create(openaiQuestion(model));
        return answer.choices().get(0).message().content().orElseThrow();
    }

    private static List<String> openaiStream(String token, String model) {
        var pieces = new ArrayList<String>();
        try (var events = openaiClient(token, true).chat().completions().createStreaming(openaiQuestion(model))) {
            events.stream()
                    .flatMap(event -> event.choices().get(0).delta().content().stream())
                    .filter(piece -> !piece.isEmpty())
                    .forEach(pieces::add);
        }
        return pieces;
    }

    private static com.anthropic.client.AnthropicClient anthropicClient(String token, boolean retries) {
        var builder = AnthropicOkHttpClient.builder().apiKey(token).baseUrl(BASE);
        return (retries ? builder : builder.maxRetries(0)).build();
    }

    private static MessageCreateParams anthropicQuestion(String model) {
        return MessageCreateParams.builder().model(model).maxTokens(16).addUserMessage("Hello?").build();
    }

    private static String anthropic(String token, String model, boolean retries) {
        var answer = anthropicClient(token, retries).messages().create(anthropicQuestion(model));
        return answer.content().get(0).asText().text();
    }

    private static List<String> anthropicStream(String token, String model) {
        var pieces = new ArrayList<String>();
        try (var events = anthropicClient(token, true).messages().createStreaming(anthropicQuestion(model))) {
            events.stream()
                    .flatMap(event -> event.contentBlockDelta().stream())
                    .flatMap(event -> event.delta().text().stream())
                    .forEach(piece -> pieces.add(piece.text()));
        }
        return pieces;
    }

    private static String stripe(String token, String customer, boolean retries) throws Exception {
        var builder = StripeClient.builder().setApiKey(token).setApiBase(BASE).setMaxNetworkRetries(retries ? 2 : 0);
        return builder.build().v1().customers().retrieve(customer).getName();
    }
}
