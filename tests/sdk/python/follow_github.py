"""PyGithub follows `url` in a repository and `Link` of its issues. Prints the numbers of all issues."""

from check import BASE, TOKEN
from github import Auth, Github

repository = Github(auth=Auth.Token(TOKEN), base_url=BASE).get_repo("seks/demo")
print([issue.number for issue in repository.get_issues()])
