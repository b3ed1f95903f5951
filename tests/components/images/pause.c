/* The first process of a pod: holds its namespaces, buries its orphans, ends when asked to. */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

int main(void)
{
    sigset_t signals;
    int signal;

    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    /* Blocked and fetched: none can arrive between a look and a wait. */
    sigprocmask(SIG_BLOCK, &signals, NULL);
    while (sigwait(&signals, &signal) == 0 && signal == SIGCHLD)
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    return 0;
}
