"""azure-ai-documentintelligence polls the operation that `Operation-Location` names. Prints the result's content."""

from azure.ai.documentintelligence import DocumentIntelligenceClient
from azure.ai.documentintelligence.models import AnalyzeDocumentRequest
from azure.core.credentials import AzureKeyCredential
from check import BASE, TOKEN

client = DocumentIntelligenceClient(BASE, AzureKeyCredential(TOKEN), polling_interval=0)
document = AnalyzeDocumentRequest(url_source="https://example.com/a.pdf")
print(client.begin_analyze_document("prebuilt-read", document).result().content)
